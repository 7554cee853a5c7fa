"""The read path of a process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import (
    AsyncIterator,
    Collection,
    Mapping,
)
from dataclasses import dataclass
from typing import Final

from starlette.routing import Mount

from proxy.background import running
from proxy.bluesky.appview import AppView, RetryPolicy
from proxy.bluesky.transport import DeadlineTransport
from proxy.clients import Trust
from proxy.clock import Clock
from proxy.composition.common import store_of, user_agent
from proxy.feeds.actors import Actors
from proxy.feeds.arrivals import Arrivals
from proxy.feeds.changes import Changes, Herald, herald_of
from proxy.feeds.counting import ReadTally
from proxy.feeds.desk import Desk
from proxy.feeds.failing import FIRST_S, FailingKeys
from proxy.feeds.fill import Caches, Filler
from proxy.feeds.headers import Manner
from proxy.feeds.held import Held
from proxy.feeds.hits import Hits
from proxy.feeds.leases import Leases
from proxy.feeds.memory import MemoryCache
from proxy.feeds.passengers import Passengers
from proxy.feeds.policy import Rules, longest_life_s, policy_of
from proxy.feeds.popular import Popular
from proxy.feeds.probing import Prober
from proxy.feeds.purge import Purges, log_key_of
from proxy.feeds.recent import RecentSet
from proxy.feeds.reply import Replies
from proxy.feeds.routes import FeedRoutes
from proxy.feeds.service import FeedService
from proxy.feeds.shared import SharedCache, channel_of, prefix_of
from proxy.feeds.wording import wording
from proxy.instruments import Instruments
from proxy.ops.report import ReadReport, StoreReport
from proxy.resilience.breaker import BreakerPolicy
from proxy.resilience.counting import CountedGate
from proxy.resilience.fleet_gate import FleetGate
from proxy.resilience.gate import GatePolicy, LocalGate
from proxy.resilience.limiter import Rate
from proxy.settings import Settings
from proxy.store.connection import Store
from proxy.store.link import PATIENCE_S, Link
from proxy.store.news import News
from proxy.syndication.announcing import Changed
from proxy.tally import Tally

_LANDING_S: Final = 0.5
_MAX_CURSORS: Final = 100_000
_FLIGHT_MEMORY_S: Final = 60.0
# At each request, and at the end of each, a pool of httpcore looks at all its connections for each of them:
# with a hundred in one pool, that takes longer than the upstream does.
_CONNECTIONS_PER_POOL: Final = 8
# Of the memory for answers, an eighth is for those that are ready to be sent.
_READY_BYTES_PER_MB: Final = 1024 * 1024 // 8
_HELD_BYTES_PER_MB: Final = 1024 * 1024 - _READY_BYTES_PER_MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The read path of a process. `rules` are what SIGHUP may replace."""

    service: FeedService
    upstream: DeadlineTransport
    hits: Hits
    rules: Rules
    route: Mount
    store: Store
    link: Link
    gate: FleetGate
    changes: Changes
    herald: Herald
    purges: Purges
    caches: Caches

    async def warm_up(self) -> None:
        """Do beside all else what the first question would pay for."""
        await asyncio.gather(self.service.warm_up(), self.upstream.warm_up())

    def changed(self, names: Collection[str]) -> None:
        """Have every process look again at copies of an account: here at once, store or no store."""
        for name in names:
            self.changes.note(name, 0.0)
        self.herald.tell(names)

    def report(self, about: Mapping[str, str] | None) -> ReadReport:
        """The state of its parts; `about` is what the store says of itself."""
        return ReadReport(
            store=_store_report(self.store, self.link, about),
            phase=self.gate.phase,
            closed_for_s=self.gate.closed_for_s(),
            limit_per_s=self.gate.limit_per_s,
            unshared=len(self.caches.unshared),
        )


@contextlib.asynccontextmanager
async def reading(
    settings: Settings,
    clock: Clock,
    instruments: Instruments,
    *,
    patience_s: float = PATIENCE_S,
) -> AsyncIterator[Reading]:
    """Everything that feeds need. `patience_s` is for how long a reader waits for a store that hesitates."""
    rules = Rules(settings.tenants.feeds)
    policy = policy_of(settings, rules)
    draw = random.Random()  # noqa: S311  (jitter, not secrets)
    async with contextlib.AsyncExitStack() as stack:
        store = store_of(settings, clock)
        stack.push_async_callback(store.aclose)
        link = Link(store, patience_s=patience_s)
        stack.push_async_callback(link.aclose)
        herald = herald_of(settings, store.run)
        stack.push_async_callback(herald.aclose)
        prefix = prefix_of(settings.namespace, settings.upstream)
        news = News(store.listen, channel_of(settings))
        changes = Changes(clock)
        purges = Purges(
            link,
            news,
            log_key=log_key_of(settings),
            keep_s=longest_life_s(settings),
            changed=changes.note,
        )
        upstream = DeadlineTransport(
            clock,
            max_connections=settings.upstream_concurrency,
            connections_per_pool=_CONNECTIONS_PER_POOL,
        )
        stack.push_async_callback(upstream.aclose)
        gate = FleetGate(
            link,
            news,
            _gate_policy(settings),
            LocalGate(_gate_policy(settings, settings.degraded_share), clock),
            clock,
            prefix=f"{prefix}{{fleet}}:",
        )
        tally = instruments.tally
        appview = AppView(
            settings.upstream,
            instruments.transport(upstream, "feedproxy_upstream"),
            CountedGate(gate, tally, clock),
            clock,
            _retry_policy(settings),
            user_agent=user_agent(settings),
            draw=draw,
            tally=tally,
        )
        caches = _caches(settings, clock, _shared(settings, clock, link, prefix=prefix, channel=news.channel))
        leases = Leases(caches.shared, news, clock, draw=draw)
        filler = Filler(appview, caches, leases, purges, policy, clock, Arrivals(draw))
        popular = Popular(link, clock, prefix=f"{prefix}{{fleet}}:")
        service = FeedService(
            filler,
            appview,
            caches,
            policy,
            clock,
            changes,
            popular,
            tally,
            warming=lambda: link.warming,
        )
        purges.swept = service.sweep
        await stack.enter_async_context(
            running(
                news=news.listen,
                store_beat=lambda: link.keep_in_step(leases.beat, gate.beat, purges.beat, popular.beat),
                probing=Prober(gate, popular, service.refresh, clock).run,
            )
        )
        stack.push_async_callback(service.close, _LANDING_S)
        manner = _manner(settings)
        replies = Replies(manner, clock)
        actors = Actors(settings.actors, service.answer)
        trust = Trust(settings.trusted_proxies, settings.client_exempt)
        reads = ReadTally(tally)
        desk = Desk(service, actors, replies, reads, trust, clock)
        hits = Hits(
            desk,
            service,
            caches.memory,
            actors,
            Passengers(service, replies, reads, clock),
            replies,
            reads,
            instruments.spans,
            clock,
            room_bytes=settings.memory_mb * _READY_BYTES_PER_MB,
        )
        _gauge(tally, service, caches.memory, hits, settings)
        yield Reading(
            service=service,
            upstream=upstream,
            hits=hits,
            rules=rules,
            route=Mount("/xrpc", FeedRoutes(desk, replies, manner)),
            store=store,
            link=link,
            gate=gate,
            changes=changes,
            herald=herald,
            purges=purges,
            caches=caches,
        )


@contextlib.asynccontextmanager
async def telling_of_changes(settings: Settings, clock: Clock) -> AsyncIterator[Changed]:
    """What a process without feeds needs to have others look again at theirs."""
    async with contextlib.AsyncExitStack() as stack:
        store = store_of(settings, clock)
        stack.push_async_callback(store.aclose)
        herald = herald_of(settings, store.run)
        stack.push_async_callback(herald.aclose)
        yield herald.tell


def _gate_policy(settings: Settings, share: float = 1.0) -> GatePolicy:
    """The limits of the fleet, or those of one process that keeps to its `share` of them."""
    return GatePolicy(
        rate=Rate(
            per_s=settings.upstream_rps * share, burst=max(1, math.floor(settings.upstream_burst * share))
        ),
        # Of less than two, one slow answer would hold up everything else.
        concurrency=max(
            min(2, settings.upstream_concurrency), math.floor(settings.upstream_concurrency * share)
        ),
        client_per_min=max(1, math.floor(settings.client_misses_per_min * share)),
        breaker=BreakerPolicy(
            threshold=settings.breaker_threshold,
            cooldown_s=settings.breaker_cooldown,
            probe_s=settings.upstream_timeout,
        ),
    )


def _retry_policy(settings: Settings) -> RetryPolicy:
    return RetryPolicy(
        attempts=settings.retry_max,
        base_s=settings.retry_base_ms / 1000,
        cap_s=settings.retry_cap_ms / 1000,
    )


def _gauge(
    tally: Tally, service: FeedService, memory: MemoryCache[Held], hits: Hits, settings: Settings
) -> None:
    tally.gauge("feedproxy_flights", read=lambda: service.flights)
    tally.gauge("feedproxy_followers", read=lambda: service.followers)
    tally.gauge("feedproxy_memory_bytes", read=lambda: memory.size_bytes + hits.size_bytes)
    tally.gauge("feedproxy_memory_limit_bytes", read=lambda: settings.memory_mb * 1024 * 1024)
    tally.gauge("feedproxy_memory_entries", read=lambda: len(memory))


def _shared(settings: Settings, clock: Clock, link: Link, *, prefix: str, channel: str) -> SharedCache:
    return SharedCache(
        link,
        clock,
        prefix=prefix,
        channel=channel,
        memory_s=_FLIGHT_MEMORY_S + 2 * settings.upstream_timeout,
        failing_s=(min(FIRST_S, settings.negative_ttl), settings.negative_ttl),
    )


def _caches(settings: Settings, clock: Clock, shared: SharedCache) -> Caches:
    return Caches(
        memory=MemoryCache[Held](settings.memory_mb * _HELD_BYTES_PER_MB),
        shared=shared,
        failing=FailingKeys(clock, longest_s=settings.negative_ttl),
        unshared=RecentSet(clock, max_items=10_000, keep_s=settings.negative_ttl),
        cursors=RecentSet(clock, max_items=_MAX_CURSORS, keep_s=settings.stale_if_error),
    )


def _manner(settings: Settings) -> Manner:
    return Manner(
        client_max_age_s=settings.client_max_age,
        stale_if_error_s=settings.stale_if_error,
        cors_origins=settings.cors_origins,
        wording=wording(settings.feed_updated_lang),
    )


def _store_report(store: Store, link: Link, about: Mapping[str, str] | None) -> StoreReport:
    if store.loading:
        return StoreReport(state="loading", about=about)
    if not link.in_step:
        return StoreReport(state="away", about=about)
    if store.refusal is not None:
        return StoreReport(state="refusing", detail=store.refusal, about=about)
    return StoreReport(state="up", about=about)

"""What a process is made of: the only place that builds things and closes them, in the reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import socket
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
)
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpx
from starlette.routing import BaseRoute, Mount, Route

from proxy.admin import AdminEdge, bearer_check
from proxy.bluesky.appview import AppView, RetryPolicy
from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import Observe, Pds
from proxy.bluesky.pins import Pins
from proxy.bluesky.sessions import Sessions
from proxy.bluesky.transport import DeadlineTransport
from proxy.bluesky.wire import Wire
from proxy.clients import Trust
from proxy.clock import Clock
from proxy.errors import PdsError, UsageError
from proxy.feeds.actors import Actors
from proxy.feeds.admin import PurgeRoutes
from proxy.feeds.changes import Changes, Herald, herald_of
from proxy.feeds.counting import ReadTally
from proxy.feeds.failing import FIRST_S, FailingKeys
from proxy.feeds.fill import Caches, Filler
from proxy.feeds.headers import Manner
from proxy.feeds.held import Held
from proxy.feeds.hits import Hits
from proxy.feeds.leases import Leases
from proxy.feeds.memory import MemoryCache
from proxy.feeds.policy import Rules, longest_life_s, policy_of
from proxy.feeds.popular import Popular
from proxy.feeds.purge import Purges, log_key_of
from proxy.feeds.recent import RecentSet
from proxy.feeds.reply import Replies
from proxy.feeds.routes import FeedRoutes
from proxy.feeds.service import FeedService
from proxy.feeds.shared import SharedCache, channel_of, prefix_of
from proxy.feeds.wording import wording
from proxy.instruments import Instruments
from proxy.ops.report import ReadReport, StoreReport
from proxy.resilience.adaptive import AdaptivePolicy
from proxy.resilience.admin_token import AdminToken
from proxy.resilience.breaker import BreakerPolicy
from proxy.resilience.counting import CountedGate
from proxy.resilience.fleet_gate import FleetGate
from proxy.resilience.gate import GatePolicy, LocalGate
from proxy.resilience.limiter import Rate
from proxy.resilience.pace import LocalPace, SharedPace
from proxy.settings import Settings
from proxy.store.connection import Store, connect
from proxy.store.link import PATIENCE_S, Link
from proxy.store.news import News
from proxy.store.persistence import persistence_of
from proxy.store.queue_store import TIMEOUT_S, QueueStore
from proxy.store.servers import servers_of
from proxy.syndication.accounts import AccountBook, TokenCheck
from proxy.syndication.admin import QueueAdminRoutes
from proxy.syndication.announcing import Announcing, Changed
from proxy.syndication.attempt import Publish
from proxy.syndication.controls import Controls
from proxy.syndication.counting import CountedPublish
from proxy.syndication.direct import DirectPublisher
from proxy.syndication.durability import Durability
from proxy.syndication.gates import GateKeeper
from proxy.syndication.intake import Intake, IntakePolicy
from proxy.syndication.preparing import Preparer
from proxy.syndication.publisher import Publisher
from proxy.syndication.queue import JobQueue, QueuePolicy
from proxy.syndication.routes import SyndicationRoutes
from proxy.syndication.slots import Slots
from proxy.syndication.waiting import Waiters, WaitPolicy
from proxy.syndication.worker import Worker, WorkerPolicy
from proxy.tally import Tally
from proxy.telemetry import get_logger
from proxy.tenants import Account
from proxy.version import VERSION
from proxy.widget.routes import WidgetRoutes

# What is under way to PDSs at a time, beside a request for each delivery: logins, look-ups.
_SPARE_CONNECTIONS: Final = 8
_LANDING_S: Final = 0.5
# A person waits for the answer.
_FORGIVE_S: Final = 3.0
_MAX_CURSORS: Final = 100_000
_DAY_S: Final = 86_400.0
_FLIGHT_MEMORY_S: Final = 60.0

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The read path of a process. `rules` are what SIGHUP may replace."""

    service: FeedService
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
        client = await stack.enter_async_context(
            client_of(
                settings,
                instruments.transport(
                    DeadlineTransport(clock, max_connections=settings.upstream_concurrency),
                    "feedproxy_upstream",
                ),
                base_url=settings.upstream,
            )
        )
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
            client, CountedGate(gate, tally, clock), clock, _retry_policy(settings), draw=draw, tally=tally
        )
        caches = _caches(settings, clock, _shared(settings, clock, link, prefix=prefix, channel=news.channel))
        leases = Leases(caches.shared, news, clock, draw=draw)
        filler = Filler(appview, caches, leases, purges, policy, clock, draw=draw)
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
            warming=lambda: store.warming,
        )
        _gauge(tally, service, caches.memory, settings)
        purges.swept = service.sweep
        await stack.enter_async_context(
            _running(news.listen(), link.keep_in_step(leases.beat, gate.beat, purges.beat, popular.beat))
        )
        stack.push_async_callback(service.close, _LANDING_S)
        manner = _manner(settings)
        replies = Replies(manner, clock)
        actors = Actors(settings.actors, service.answer)
        trust = Trust(settings.trusted_proxies, settings.client_exempt)
        reads = ReadTally(tally)
        hits = Hits(service, caches.memory, replies, reads, clock)
        yield Reading(
            service=service,
            hits=hits,
            rules=rules,
            route=Mount("/xrpc", FeedRoutes(service, actors, replies, hits, reads, manner, trust, clock)),
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


def admin_routes(
    settings: Settings, clock: Clock, feeds: Reading, posts: Syndication, token: AdminToken
) -> list[Route]:
    """What operators may do over HTTP; nothing without a token."""
    if not token.is_set:
        return []
    edge = AdminEdge(bearer_check(token, Trust(settings.trusted_proxies)))
    queue = QueueAdminRoutes(posts.controls(clock), lambda: posts.book.current, clock, edge)
    return [*PurgeRoutes(feeds.purges, feeds.service, edge).routes(), *queue.routes()]


def widget_routes(settings: Settings, feeds: Reading) -> list[BaseRoute]:
    """The widget and its pages, which ask for feeds as everybody does."""
    named = (actor for actor in settings.actors or () if not actor.startswith("at://"))
    widget = WidgetRoutes(
        feeds.route.app,
        public_url=settings.public_url,
        plain_pictures=settings.upstream.startswith("http:"),
        any_origin="*" in settings.cors_origins,
        actor=next(named, None),
    )
    return widget.routes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Syndication:
    """What the write path of a web process and that of a worker have in common."""

    queue: JobQueue
    book: AccountBook
    pins: Pins
    sessions: Sessions
    publisher: Publisher
    publish: Publish  # by it, and told to who wants to know
    observers: list[Observe]  # of what is asked of PDSs
    store_config: Callable[[], Awaitable[Mapping[str, str]]]
    instruments: Instruments

    def routes(self, settings: Settings, clock: Clock, draining: asyncio.Event) -> list[BaseRoute]:
        """The intake: /syndicate and what belongs to it."""
        desk = GateKeeper(self.queue, clock)
        intake = Intake(
            desk,
            self.book,
            clock,
            IntakePolicy(max_post_age_s=settings.max_post_age_days * _DAY_S, base=settings.public_url or ""),
            durability=Durability(self.store_config, clock),
            known_did=self._known_did,
            forgive=lambda account: self._forgive(account, clock),
            publish_now=DirectPublisher(
                self.publish, self.sessions, lambda: self.book.current, clock, closed=desk.closed
            ),
        )
        waiters = Waiters(intake, draining, WaitPolicy())
        edge = SyndicationRoutes(
            intake,
            TokenCheck(self.book, clock),
            waiters,
            trust=Trust(settings.trusted_proxies),
            public_url=settings.public_url,
        )
        return edge.routes()

    def worker(self, settings: Settings, clock: Clock) -> Worker:
        """A worker on this queue, with a name that no other ever had."""
        policy = WorkerPolicy(concurrency=settings.worker_concurrency, lease_s=settings.lease_s)
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        draw = random.Random().random  # noqa: S311  (jitter, not secrets)
        slots = Slots(AdaptivePolicy(ceiling=settings.worker_concurrency), clock)
        self.observers.append(slots.heard)
        worker = Worker(
            self.queue,
            CountedPublish(self.publish, self.instruments, clock),
            self.fingerprints,
            clock,
            policy,
            name=name,
            draw=draw,
            slots=slots,
            home=self.publisher.home,
        )
        tally = self.instruments.tally
        tally.gauge("feedproxy_pool_size", read=lambda: policy.concurrency)
        tally.gauge("feedproxy_pool_busy", read=lambda: worker.in_flight)
        tally.gauge("feedproxy_pool_host_limit", read=slots.least_limit)
        return worker

    def fingerprints(self) -> Mapping[str, str]:
        """The accounts that can be logged in to, with what tells one password from the next."""
        accounts = self.book.current
        known = {name: accounts.credential(name) for name in accounts.usable()}
        return {name: credential.fingerprint for name, credential in known.items() if credential}

    async def _known_did(self, account: Account) -> str:
        return await self.pins.known(account.identifier)

    def controls(self, clock: Clock) -> Controls:
        """What operators may do to the queue."""

        async def forgive(name: str) -> None:
            if (account := self.book.current.accounts.get(name)) is not None:
                await self._forgive(account, clock)

        return Controls(self.queue, forgive)

    async def _forgive(self, account: Account, clock: Clock) -> None:
        # Of an account that nobody can find no login was refused.
        with contextlib.suppress(PdsError):
            await self.sessions.forgive(account, clock.steady() + _FORGIVE_S)


@contextlib.asynccontextmanager
async def syndicating(
    settings: Settings,
    clock: Clock,
    environ: Mapping[str, str],
    instruments: Instruments,
    changed: Changed,
    *,
    prepare: bool = True,
) -> AsyncIterator[Syndication]:
    """Everything that posts need; `changed` hears of accounts whose posts have changed.

    Until the first post nothing is sent but questions of who accounts are; with `prepare`, these are asked
    ahead of posts.
    """
    if settings.redis_url is None:
        raise UsageError("FEEDPROXY_REDIS_URL is not set, and there is no embedded store in this process")
    book = AccountBook(settings.tenants, environ)
    prefix = f"{settings.namespace}:{{q}}:"
    async with contextlib.AsyncExitStack() as stack:
        servers = servers_of(settings.redis_url, clock, timeout_s=TIMEOUT_S)
        store = QueueStore(servers, clock)
        stack.push_async_callback(store.aclose)
        connections = settings.worker_concurrency + _SPARE_CONNECTIONS
        transport = DeadlineTransport(clock, max_connections=connections)
        client = await stack.enter_async_context(
            client_of(settings, instruments.transport(transport, "feedproxy_pds"))
        )
        wire = Wire(client, clock)
        rate = Rate(per_s=settings.pds_rps, burst=settings.pds_burst)
        alone = LocalPace(replace(rate, per_s=rate.per_s * settings.degraded_share), clock)
        observers: list[Observe] = []
        pace = SharedPace(store, rate, alone, clock, prefix=prefix)
        pds = Pds(wire, pace, clock, observers=observers)
        identities = Identities(wire, clock, plc_url=settings.plc_url, resolver_url=settings.upstream)
        pins = Pins(store, identities, prefix=prefix)
        sessions = Sessions(store, pds, identities, pins, clock, prefix=prefix)
        queue = JobQueue(store, clock, _queue_policy(settings), namespace=settings.namespace)
        stack.push_async_callback(queue.aclose)
        draw = random.Random().random  # noqa: S311  (jitter, not secrets)
        if prepare:
            await stack.enter_async_context(Preparer(book, pins, sessions, clock, draw=draw).working())
        publisher = Publisher(sessions, pds, identities, lambda: book.current, clock)
        yield Syndication(
            queue=queue,
            book=book,
            pins=pins,
            sessions=sessions,
            publisher=publisher,
            publish=Announcing(publisher, lambda: book.current, changed),
            observers=observers,
            store_config=persistence_of(servers, prefix),
            instruments=instruments,
        )


def _queue_policy(settings: Settings) -> QueuePolicy:
    return QueuePolicy(
        lease_s=settings.lease_s,
        retry_delays_s=settings.syndication_retry_delays,
        breaker_threshold=settings.account_breaker_threshold,
        breaker_cooldown_s=settings.account_breaker_cooldown,
        max_post_age_s=settings.max_post_age_days * _DAY_S,
        done_retention_s=settings.done_retention_days * _DAY_S,
        dead_retention_s=settings.dead_retention_days * _DAY_S,
    )


def store_of(settings: Settings, clock: Clock) -> Store:
    """The store of cache, limiter and leases."""
    url = settings.store_url
    if url is None:
        raise UsageError("FEEDPROXY_REDIS_URL is not set, and there is no embedded store in this process")
    return connect(url, clock)


def client_of(
    settings: Settings, transport: httpx.AsyncBaseTransport, *, base_url: str = ""
) -> httpx.AsyncClient:
    """The HTTP client of a process."""
    contact = f" ({settings.contact})" if settings.contact else ""
    return httpx.AsyncClient(
        base_url=base_url,
        transport=transport,
        headers={"user-agent": f"feedproxy/{VERSION}{contact}"},
        # A cookie for one question would go along with everyone's.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
    )


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


@contextlib.asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Background work, under way for as long as the block lasts."""
    tasks = [asyncio.create_task(each) for each in work]
    for task in tasks:
        task.add_done_callback(_tell_crash)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _tell_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background_work_crashed", exc_info=error)


def _gauge(tally: Tally, service: FeedService, memory: MemoryCache[Held], settings: Settings) -> None:
    tally.gauge("feedproxy_flights", read=lambda: service.flights)
    tally.gauge("feedproxy_followers", read=lambda: service.followers)
    tally.gauge("feedproxy_memory_bytes", read=lambda: memory.size_bytes)
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
        memory=MemoryCache[Held](settings.memory_mb * 1024 * 1024),
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

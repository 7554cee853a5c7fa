"""What a process is made of: the only place that builds things and closes them, in the reverse order."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx
from starlette.routing import Mount

from proxy.bluesky.appview import AppView, RetryPolicy
from proxy.bluesky.transport import DeadlineTransport
from proxy.clock import Clock
from proxy.errors import UsageError
from proxy.feeds.failing import FailingKeys
from proxy.feeds.fill import Caches, Filler
from proxy.feeds.headers import Manner
from proxy.feeds.held import Held
from proxy.feeds.memory import MemoryCache
from proxy.feeds.policy import Rules, policy_of
from proxy.feeds.recent import RecentSet
from proxy.feeds.routes import FeedRoutes
from proxy.feeds.service import FeedService
from proxy.feeds.shared import SharedCache
from proxy.feeds.wording import wording
from proxy.ops.health import Finding
from proxy.resilience.breaker import BreakerPolicy, Phase
from proxy.resilience.gate import GatePolicy, LocalGate
from proxy.resilience.limiter import Rate
from proxy.settings import Settings
from proxy.store.connection import Store, connect
from proxy.version import VERSION

_LANDING_S: Final = 0.5
_MAX_CURSORS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The read path of a process. `rules` are what SIGHUP may replace."""

    service: FeedService
    rules: Rules
    route: Mount
    store: Store
    gate: LocalGate
    caches: Caches

    def findings(self) -> Iterator[Finding]:
        """The state of its parts."""
        yield _of_store(self.store)
        yield _of_upstream(self.gate)
        if len(self.caches.unshared):
            yield Finding(
                "storability",
                "warn",
                "The upstream forbids to store some answers (no-store, private or Vary): each of their "
                "readers costs a request. See what stands between this host and the upstream.",
            )


@contextlib.asynccontextmanager
async def reading(settings: Settings, clock: Clock) -> AsyncIterator[Reading]:
    """Everything that feeds need."""
    rules = Rules(settings.tenants.feeds)
    policy = policy_of(settings, rules)
    draw = random.Random()  # noqa: S311  (jitter, not secrets)
    async with contextlib.AsyncExitStack() as stack:
        store = _store(settings, clock)
        stack.push_async_callback(store.aclose)
        client = await stack.enter_async_context(_upstream_client(settings, clock))
        gate = LocalGate(_gate_policy(settings), clock)
        appview = AppView(client, gate, clock, _retry_policy(settings), draw=draw)
        caches = _caches(settings, clock, store)
        filler = Filler(appview, caches, policy, clock, draw=draw)
        service = FeedService(filler, appview, caches, policy, clock)
        stack.push_async_callback(service.close, _LANDING_S)
        yield Reading(
            service=service,
            rules=rules,
            route=Mount("/xrpc", FeedRoutes(service, _manner(settings), clock)),
            store=store,
            gate=gate,
            caches=caches,
        )


def _store(settings: Settings, clock: Clock) -> Store:
    url = settings.store_url
    if url is None:
        raise UsageError("FEEDPROXY_REDIS_URL is not set, and there is no embedded store in this process")
    return connect(url, clock)


def _upstream_client(settings: Settings, clock: Clock) -> httpx.AsyncClient:
    contact = f" ({settings.contact})" if settings.contact else ""
    return httpx.AsyncClient(
        base_url=settings.upstream,
        transport=DeadlineTransport(clock, max_connections=settings.upstream_concurrency),
        headers={"user-agent": f"feedproxy/{VERSION}{contact}"},
        # A cookie for one question would go along with everyone's.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
    )


def _gate_policy(settings: Settings) -> GatePolicy:
    return GatePolicy(
        # The budget is the host's; each of its web processes has a part of it.
        rate=Rate(
            per_s=settings.upstream_rps / settings.workers,
            burst=max(1, settings.upstream_burst // settings.workers),
        ),
        # Of less than two, one slow answer would hold up everything else.
        concurrency=max(
            min(2, settings.upstream_concurrency), settings.upstream_concurrency // settings.workers
        ),
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


def _caches(settings: Settings, clock: Clock, store: Store) -> Caches:
    return Caches(
        memory=MemoryCache[Held](settings.memory_mb * 1024 * 1024),
        shared=SharedCache(store, clock, namespace=settings.namespace, upstream=settings.upstream),
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


def _of_store(store: Store) -> Finding:
    if not store.reachable:
        return Finding(
            "store",
            "warn",
            "Redis does not answer: feeds are served from memory alone. See that it runs and is reachable.",
        )
    if store.loading:
        return Finding(
            "store",
            "warn",
            "Redis is loading its data: feeds are served from memory alone until it has. Nothing to do.",
        )
    if store.refusal is not None:
        return Finding(
            "store",
            "warn",
            f"Redis refuses ({store.refusal}): feeds are not kept over a restart. See its memory and "
            "disk, and whether it is a replica.",
        )
    return Finding("store", "pass")


def _of_upstream(gate: LocalGate) -> Finding:
    if gate.phase is Phase.CLOSED:
        return Finding("upstream", "pass")
    return Finding(
        "upstream",
        "warn",
        "The upstream has been failing; stored copies are served, and it is tried again by itself. "
        "See FEEDPROXY_UPSTREAM and the network if this lasts.",
    )

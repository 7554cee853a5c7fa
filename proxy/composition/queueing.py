"""The queue: what all that has to do with posts begins with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.errors import UsageError
from proxy.settings import Settings
from proxy.store.queue_store import TIMEOUT_S, QueueStore
from proxy.store.servers import Servers, servers_of
from proxy.syndication.queue import JobQueue, QueuePolicy

DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queueing:
    """The queue and the store that it is in; all keys that belong to it begin with `prefix`."""

    servers: Servers
    store: QueueStore
    queue: JobQueue
    prefix: str


@contextlib.asynccontextmanager
async def queueing(settings: Settings, clock: Clock) -> AsyncIterator[Queueing]:
    """The queue of `settings`, of which nothing is asked yet."""
    if settings.redis_url is None:
        raise UsageError("FEEDPROXY_REDIS_URL is not set, and there is no embedded store in this process")
    async with contextlib.AsyncExitStack() as stack:
        servers = servers_of(settings.redis_url, clock, timeout_s=TIMEOUT_S)
        store = QueueStore(servers, clock)
        stack.push_async_callback(store.aclose)
        queue = JobQueue(store, clock, _queue_policy(settings), namespace=settings.namespace)
        stack.push_async_callback(queue.aclose)
        prefix = f"{settings.namespace}:{{q}}:"
        yield Queueing(servers=servers, store=store, queue=queue, prefix=prefix)


def _queue_policy(settings: Settings) -> QueuePolicy:
    return QueuePolicy(
        lease_s=settings.lease_s,
        retry_delays_s=settings.syndication_retry_delays,
        breaker_threshold=settings.account_breaker_threshold,
        breaker_cooldown_s=settings.account_breaker_cooldown,
        max_post_age_s=settings.max_post_age_days * DAY_S,
        done_retention_s=settings.done_retention_days * DAY_S,
        dead_retention_s=settings.dead_retention_days * DAY_S,
    )

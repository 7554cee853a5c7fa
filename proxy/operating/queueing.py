"""The queue alone, for commands that ask no server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from proxy.clock import Clock
from proxy.composition.queueing import queueing
from proxy.operating.stores import plainly_told, reachable
from proxy.settings import Settings
from proxy.syndication.queue import JobQueue


@contextlib.asynccontextmanager
async def at_queue(settings: Settings, clock: Clock) -> AsyncIterator[JobQueue]:
    """The queue. Raises OperationalError when the store does not answer, or refuses."""
    with plainly_told():
        async with queueing(reachable(settings), clock) as base:
            yield base.queue

"""The queue with its accounts, and what logs them in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from proxy.clock import Clock
from proxy.composition.syndicating import Syndication, syndicating
from proxy.observing import Process
from proxy.operating.stores import plainly_told, reachable
from proxy.settings import Settings


@contextlib.asynccontextmanager
async def operating(
    settings: Settings, clock: Clock, environ: Mapping[str, str]
) -> AsyncIterator[Syndication]:
    """The queue and its accounts. Raises OperationalError when the store does not answer, or refuses."""
    with plainly_told():
        instruments = Process().instruments(clock)
        async with syndicating(
            reachable(settings), clock, environ, instruments, lambda _names: None, prepare=False
        ) as posts:
            yield posts

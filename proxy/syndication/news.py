"""Who waits for a job is told when something happens to it: one subscription for all of a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Final

from proxy.clock import Clock
from proxy.errors import StoreUnavailable
from proxy.store.queue_store import QueueStore

# Without a subscription, those who wait look for themselves so often.
_LOOK_S: Final = 1.0


class News:
    """Listens on `channel` as long as somebody waits."""

    def __init__(self, store: QueueStore, clock: Clock, *, channel: str) -> None:
        self._store = store
        self._clock = clock
        self._channel = channel
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._listening: asyncio.Task[None] | None = None
        self._subscribed = False

    async def wait(self, job: str, timeout_s: float) -> None:
        """Return when something happened to `job`, or after `timeout_s`, or sooner: then look for yourself.

        What happened before the call is not told.
        """
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen(), name="queue news")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[job].add(waiter)
        try:
            async with asyncio.timeout(timeout_s if self._subscribed else min(timeout_s, _LOOK_S)):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiting[job].discard(waiter)
            if not self._waiting[job]:
                del self._waiting[job]

    async def aclose(self) -> None:
        """Stop listening; everybody is told to look."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        self._wake_all()

    async def _listen(self) -> None:
        try:
            async with contextlib.aclosing(self._store.listen(self._channel)) as news:
                await self._heed(news)
        except StoreUnavailable:
            return  # whoever waits next tries again
        finally:
            self._subscribed = False
            self._wake_all()

    async def _heed(self, news: AsyncIterator[bytes | None]) -> None:
        async for job in news:
            if not self._subscribed:
                # What happened until now was not heard.
                self._subscribed = True
                self._wake_all()
            elif job is not None:
                self._wake(job.decode())
            elif not self._waiting:
                break

    def _wake(self, job: str) -> None:
        for waiter in self._waiting.get(job, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _wake_all(self) -> None:
        for job in list(self._waiting):
            self._wake(job)

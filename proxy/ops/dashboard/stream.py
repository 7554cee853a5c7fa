"""The dashboard's event stream: while somebody looks, how everything stands, every two seconds.

While nobody does there is nothing here that runs, and nothing is asked of the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from proxy.clock import Clock
from proxy.errors import Rejected
from proxy.events import begin, disconnected, end, event, tell

# The document for a viewer who has seen the steps up to an instant (seconds since 1970; 0: none).
Tell = Callable[[float], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPolicy:
    """How many may look at a time, in one process, and how often they are told."""

    most: int = 16
    every_s: float = 2.0


class Streams:
    """The event streams of this process. `draining` is set once it is to stop."""

    def __init__(self, told: Tell, clock: Clock, draining: asyncio.Event, policy: StreamPolicy) -> None:
        self._tell = told
        self._clock = clock
        self._draining = draining
        self._policy = policy
        self._open = 0

    def stream(self, *, until: float, seen_at: float) -> EventStream:
        """A stream that ends at `until` (since 1970), for a viewer who has seen the steps up to `seen_at`.

        Raises Rejected, 429 when too many look.
        """
        if self._open >= self._policy.most:
            told = (("Retry-After", "5"),)
            raise Rejected(429, "RateLimitExceeded", "too many dashboards are open on this host", told)
        return EventStream(self, until, seen_at)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count one more stream."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def run(self, send: Send, gone: asyncio.Future[Any], *, until: float, seen_at: float) -> None:
        """Send documents until the viewer is `gone`, the process drains, or the session ends."""
        draining = asyncio.create_task(self._draining.wait(), name="ops draining")
        coming: asyncio.Task[Mapping[str, Any]] | None = None
        pause_s = 0.0
        try:
            while self._clock.wall() < until:
                coming = asyncio.create_task(self._next(seen_at, pause_s), name="ops scene")
                await asyncio.wait((coming, draining, gone), return_when=asyncio.FIRST_COMPLETED)
                if draining.done() or gone.done():
                    break
                document = coming.result()
                if document["steps"]:
                    seen_at = document["steps"][-1][0]
                await tell(send, event("state", str(seen_at), document))
                pause_s = self._policy.every_s
        finally:
            tasks = [task for task in (coming, draining) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _next(self, seen_at: float, pause_s: float) -> Mapping[str, Any]:
        await asyncio.sleep(pause_s)
        return await self._tell(seen_at)


class EventStream:
    """The answer to a viewer, as an ASGI application."""

    def __init__(self, streams: Streams, until: float, seen_at: float) -> None:
        self._streams = streams
        self._until = until
        self._seen_at = seen_at

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send events for as long as somebody is there to see them."""
        with self._streams.place():
            async with disconnected(receive) as gone:
                await begin(send)
                await self._streams.run(send, gone, until=self._until, seen_at=self._seen_at)
                if not gone.done():
                    await end(send)

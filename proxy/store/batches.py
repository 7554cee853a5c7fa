"""Calls that are made at the same time travel together, so that a busy process costs few round trips."""

from __future__ import annotations

import asyncio

from proxy.store.calls import Call, send
from proxy.store.servers import Servers


class Batches:
    """Sends calls in batches of up to `size`, of which up to `at_a_time` are under way.

    What comes meanwhile makes up the next one. `timeout_s` is for each answer. A call whose caller has gone
    is carried out all the same.
    """

    def __init__(self, servers: Servers, timeout_s: float, *, at_a_time: int, size: int) -> None:
        self._servers = servers
        self._timeout_s = timeout_s
        self._at_a_time = at_a_time
        self._size = size
        self._waiting: list[Call] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, call: Call) -> None:
        """Send `call` soon; it is settled, come what may."""
        self._waiting.append(call)
        if len(self._tasks) < self._at_a_time:
            self._tasks.add(asyncio.create_task(self._send(), name="store batch"))

    async def aclose(self) -> None:
        """Let go out what is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _send(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
                await send(self._servers, calls, self._timeout_s)
        finally:
            # Not a turn of the loop later: a call that comes in between would wait for the one after it.
            task = asyncio.current_task()
            assert task is not None  # noqa: S101  (this is one)
            self._tasks.discard(task)

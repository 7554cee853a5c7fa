"""Many clients that cost little: raw connections over which one question after the other is asked."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CACHE_STATUS = re.compile(rb"\r\ncache-status: ([^\r]*)")


@dataclass(frozen=True, slots=True)
class Got:
    """An answer: when it was asked for (on the monotonic clock), how long it took, and all of it."""

    target: str
    asked_at: float
    took_s: float
    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def cache_status(self) -> str:
        told = _CACHE_STATUS.search(self.head)
        return told[1].decode() if told else ""

    @property
    def hit(self) -> bool:
        return self.cache_status.startswith("feedproxy; hit")


class Asker(asyncio.Protocol):
    """One connection, one question at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        whole = end + (int(length[1]) if length else 0)
        if len(self._buffer) >= whole and self._answer is not None and not self._answer.done():
            self._answer.set_result((self._buffer[:end], self._buffer[end:whole]))
            self._buffer = self._buffer[whole:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the connection ended without an answer"))

    @property
    def closed(self) -> bool:
        """Whether the server, or we, ended the connection."""
        return self._transport.is_closing()

    async def ask(self, target: str) -> Got:
        """Raises ConnectionError when there is no answer, TimeoutError after half a minute."""
        asked_at = time.monotonic()
        self._answer = asyncio.get_running_loop().create_future()
        if self.closed:
            raise ConnectionResetError("the connection has ended")
        self._transport.write(f"GET {target} HTTP/1.1\r\nHost: load.test\r\n\r\n".encode())
        async with asyncio.timeout(30):
            head, body = await self._answer
        return Got(target, asked_at, time.monotonic() - asked_at, head, body)

    def close(self) -> None:
        self._transport.close()


async def askers(ports: Sequence[int], count: int) -> list[Asker]:
    """So many connections, to each port as many."""
    loop = asyncio.get_running_loop()
    found = []
    for number in range(count):
        _, asker = await loop.create_connection(Asker, "127.0.0.1", ports[number % len(ports)])
        found.append(asker)
    return found


async def ask_together(ports: Sequence[int], targets: Sequence[str], count: int) -> list[Got]:
    """The answers to `count` clients that ask for the targets in turns, all at once."""
    connections = await askers(ports, count)
    try:
        questions = (one.ask(targets[number % len(targets)]) for number, one in enumerate(connections))
        return list(await asyncio.gather(*questions))
    finally:
        for one in connections:
            one.close()


def percentile_ms(times_s: Iterable[float], share: float) -> float:
    """The time within which that share of them lies."""
    ordered = sorted(times_s)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000

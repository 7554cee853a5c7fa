"""A client that costs little: raw connections, one question at a time on each."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Self

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answered:
    """How a question went: when it was asked, how long it took, with which status and Cache-Status."""

    asked_at: float
    took_s: float
    status: int
    cache_status: str


class Connection:
    """One connection to a server on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def get(self, target: str) -> Answered:
        """Ask, and read the whole answer. Raises OSError or EOFError when there is none."""
        asked_at = time.perf_counter()
        self._writer.write(f"GET {target} HTTP/1.1\r\nHost: bench.test\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is not None:
            await self._reader.readexactly(int(length[1]))
        else:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                await self._reader.readexactly(size + 2)
            await self._reader.readexactly(2)
        told = re.search(rb"\r\ncache-status: ([^\r]*)", head)
        return Answered(
            asked_at, time.perf_counter() - asked_at, int(head[9:12]), told[1].decode() if told else ""
        )

    def close(self) -> None:
        self._writer.close()


def all_good(answers: list[Answered]) -> None:
    """Raises RuntimeError for refusals, which are quick and spare the origin."""
    statuses = {answer.status for answer in answers}
    if statuses != {200}:
        raise RuntimeError(f"answered with {sorted(statuses)}")


def percentile_ms(answers: list[Answered], share: float) -> float:
    """The time in which that share of the answers came."""
    times = sorted(answer.took_s for answer in answers)
    return times[min(len(times) - 1, int(len(times) * share))] * 1000

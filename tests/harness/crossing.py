"""A way to Redis that names each exchange before it goes there and before its answer comes back.

What a test does at such a crossing is up to it: hold it, freeze or kill the process, cut the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from hashlib import sha1
from pathlib import Path
from types import ModuleType
from typing import Final

from proxy.bluesky import pins, sessions
from proxy.resilience import pace
from proxy.store.scripts import Script
from proxy.syndication import queue

BEFORE: Final = "before"
AFTER: Final = "after"


class Cut(ConnectionError):
    """Raised at a crossing: the connection ends there."""


# Called with the name of the exchange (a script, a command, a method of the PDS) and before or after.
Crossing = Callable[[str, str], Awaitable[None]]


def _scripts(*modules: ModuleType) -> Iterator[Script]:
    for module in modules:
        for value in vars(module).values():
            held = value.values() if isinstance(value, Mapping) else (value,)
            yield from (script for script in held if isinstance(script, Script))


SCRIPTS: Final = tuple(_scripts(queue, sessions, pins, pace))
_NAMES: Final = {script.sha.encode(): script.name for script in SCRIPTS}
_STEPS: Final = frozenset(script.sha.encode() for script in SCRIPTS if script.step)


def _name(words: list[bytes]) -> str:
    """Of a command. A script of many steps is told the one that is meant by its first argument."""
    if words[2] not in (b"EVALSHA", b"EVAL"):
        return words[2].decode()
    is_sha = words[2] == b"EVALSHA"
    sha = words[4] if is_sha else sha1(words[4], usedforsecurity=False).hexdigest().encode()
    return words[8 + 2 * int(words[6])].decode() if sha in _STEPS else _NAMES[sha]


class RedisGate:
    """Between a process and the Redis on a unix socket. With `twice`, each script is sent there twice.

    The process gets the second answer then, as when the first was lost.
    """

    def __init__(self, target: Path, crossing: Crossing, *, twice: bool = False) -> None:
        self._target = target
        self._crossing = crossing
        self._twice = twice
        self._connections: set[asyncio.Task[None]] = set()
        self._ways: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the process."""
        self._connections.add(asyncio.current_task())
        there_reader, there = await asyncio.open_unix_connection(self._target)
        sent: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        ways = {
            asyncio.create_task(self._forward(reader, there, sent)),
            asyncio.create_task(self._return(there_reader, writer, sent)),
        }
        self._ways |= ways
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, there):
                end.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._ways -= ways
            self._connections.discard(asyncio.current_task())

    async def aclose(self) -> None:
        """End every connection."""
        for way in list(self._ways):
            way.cancel()
        await asyncio.gather(*self._connections)

    async def _forward(self, reader, there, sent) -> None:
        while True:
            command = await _read(reader)
            name = _name(command.split(b"\r\n"))
            if name != "CLIENT":  # each connection begins with some
                await self._crossing(name, BEFORE)
            times = 2 if name in _STEPS and self._twice else 1
            sent.put_nowait((name, times))
            there.write(command * times)
            await there.drain()

    async def _return(self, there_reader, writer, sent) -> None:
        while True:
            name, times = await sent.get()
            for _ in range(times):
                answer = await _read(there_reader)
            if name != "CLIENT":
                await self._crossing(name, AFTER)
            writer.write(answer)
            await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One command or answer (https://redis.io/docs/latest/develop/reference/protocol-spec, version 2)."""
    line = await reader.readuntil(b"\r\n")
    kind, rest = line[:1], line[1:-2]
    if kind == b"$" and rest != b"-1":
        return line + await reader.readexactly(int(rest) + 2)
    if kind == b"*":
        return line + b"".join([await _read(reader) for _ in range(int(rest))])
    return line


@contextlib.asynccontextmanager
async def redis_gate(
    socket: Path, target: Path, crossing: Crossing, *, twice: bool = False
) -> AsyncIterator[str]:
    """The URL of a gate that listens on `socket`, before the Redis on `target`."""
    gate = RedisGate(target, crossing, twice=twice)
    server = await asyncio.start_unix_server(gate.serve, socket, limit=2**20)
    try:
        yield f"unix://{socket}"
    finally:
        server.close()
        await gate.aclose()

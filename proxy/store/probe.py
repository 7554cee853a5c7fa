"""One question to a Valkey, without a client library: used while it starts, loads or must go."""

from __future__ import annotations

import asyncio
from pathlib import Path

ANSWER_WITHIN_S = 1.0


async def exchange(socket: Path, command: bytes) -> bytes | None:
    """The first line that the server answers to an inline command; None without an answer within a second."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(command)
                return await reader.readline() or None
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None


async def ping(socket: Path) -> bytes | None:
    """What the server answers to PING once it is up: +PONG, or -LOADING while it reads its data."""
    answer = await exchange(socket, b"PING\r\n")
    return answer if answer is not None and answer.startswith((b"+PONG", b"-LOADING")) else None

"""The channel between the supervisor and its children: how each knows that the other lives and is ready.

One end of a socketpair each, newline-delimited JSON with a format number. The first event, with file
descriptors, tells a child that has loaded its modules what it is to do. The channel closing is the news that
the other side is gone, whatever killed it. Events a side does not know are ignored, so that a supervisor
and a child of neighbouring versions get along.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

FORMAT = 1
_LINE_LIMIT_BYTES = 65_536
# What may wait for a child that has stopped reading; the next event it gets carries the whole state anyway.
_BACKLOG_BYTES = 65_536
_INCIDENTS_TOLD = 3  # the latest; there are paths in them, and a line has its limit
_FDS_MAX = 16


def encode(event: str, **fields: Any) -> bytes:
    """One event as a line to send."""
    return json.dumps({"v": FORMAT, "event": event, **fields}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """The event in a received line; None for what this version does not understand."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if (
        not isinstance(message, dict)
        or message.get("v") != FORMAT
        or not isinstance(message.get("event"), str)
    ):
        return None
    return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a child is told first: its place, what to add to its environment, file descriptors by name."""

    place: int
    environ: Mapping[str, str]
    fds: Mapping[str, int]


def receive_beginning(control_fd: int) -> Beginning | None:
    """Wait for it; None when the supervisor is gone, or says what we do not understand."""
    control = socket.socket(fileno=control_fd)
    try:
        # The descriptors come with the first byte. What is behind the line is left to ControlChannel.
        first, fds, _, _ = socket.recv_fds(control, 1, _FDS_MAX)
        line = first + control.makefile("rb", buffering=0).readline()
    except OSError:
        return None
    finally:
        control.detach()
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003
    match decode(line):
        case {"event": "begin", "place": int(place), "environ": dict(environ), "fds": list(names)}:
            return Beginning(place=place, environ=environ, fds=dict(zip(names, fds, strict=True)))
        case _:
            return None


class _End:
    """What both ends share: a stream of events in, events out, and the end of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writer: asyncio.StreamWriter | None = None

    async def _open(self) -> asyncio.StreamReader:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=_LINE_LIMIT_BYTES)
        return reader

    async def _events(self, reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
        """Events until the other side is gone."""
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than any event of ours, and dropped by the reader
                continue
            except OSError:  # the other side died with our bytes unread
                return
            if not line.endswith(b"\n"):
                return
            message = decode(line)
            if message is not None:
                yield message

    def _send(self, line: bytes) -> None:
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() < _BACKLOG_BYTES:
            writer.write(line)

    async def _close(self) -> None:
        if self._writer is None:
            self._sock.close()
            return
        # What is still unsent has a reader that hangs, and would keep us here with it.
        self._writer.transport.abort()
        with contextlib.suppress(OSError):  # the other side died first
            await self._writer.wait_closed()


class ControlChannel(_End):
    """The child's end: says that this process is ready, knows how many are, and notices an orphan's fate.

    `ready` of `expected` web processes of this host accept connections; `incidents` says what has befallen
    the data of the embedded store. Both are current while the channel is open (`async with`). When
    `wait_closed` returns, the supervisor is gone and this process should exit at once.
    """

    def __init__(self, fd: int) -> None:
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        super().__init__(sock)
        self.ready = 0
        self.expected = 1
        self.incidents: tuple[str, ...] = ()
        self._closed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else "open"
        return f"<ControlChannel {state}, {self.ready} of {self.expected} ready>"

    async def __aenter__(self) -> Self:
        reader = await self._open()
        self._listening = asyncio.create_task(self._listen(reader), name="control")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        await self._close()

    @property
    def complete(self) -> bool:
        """Whether every web process of this host is ready."""
        return self.ready >= self.expected

    async def send_ready(self) -> None:
        """Tell the supervisor that this process accepts connections."""
        self._send(encode("ready"))

    async def wait_closed(self) -> None:
        """Return once the supervisor is gone."""
        await self._closed.wait()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            async for message in self._events(reader):
                self._take(message)
        finally:
            self._closed.set()

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"event": "fleet", "ready": int(ready), "expected": int(expected)}:
                self.ready, self.expected = ready, expected
            case {"event": "store", "incidents": list(incidents)}:
                self.incidents = tuple(map(str, incidents))
            case _:
                pass


class ChildLink(_End):
    """The supervisor's end of one child's channel."""

    def send_beginning(self, beginning: Beginning) -> None:
        """Tell the child what it is to do, before anything else; a child that has gone hears nothing."""
        told = {"place": beginning.place, "environ": dict(beginning.environ), "fds": list(beginning.fds)}
        with contextlib.suppress(OSError):
            socket.send_fds(self._sock, [encode("begin", **told)], list(beginning.fds.values()))

    def send_fleet(self, ready: int, expected: int) -> None:
        """Tell the child how many web processes are ready; for a child that has gone, nothing happens."""
        self._send(encode("fleet", ready=ready, expected=expected))

    def send_store(self, incidents: Sequence[str]) -> None:
        """Tell the child what has happened to the data of the embedded store, oldest first."""
        self._send(encode("store", incidents=list(incidents[-_INCIDENTS_TOLD:])))

    async def events(self) -> AsyncIterator[str]:
        """Names of the events that the child sends, until it is gone."""
        reader = await self._open()
        async for message in self._events(reader):
            yield message["event"]

    async def close(self) -> None:
        """Close this end: a child that still lives takes it as the end of its supervisor."""
        await self._close()

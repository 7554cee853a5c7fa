"""An AppView of our own that does what a test tells it to, down to the bytes on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    """One request as it came; `headers` by lower-case name, `at` on the monotonic clock, from `port`."""

    target: str
    headers: dict[str, str]
    at: float = field(default_factory=time.monotonic)
    port: int = 0

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def params(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@dataclass
class Response:
    """What to answer, and how badly.

    `cut_at`: the connection closes after so many bytes of the body. `drip_s`: a pause before each byte of
    the whole answer. `close`: the connection closes without an answer. `hang`: no answer, connection open.
    `validates`: who has the same already is answered 304.
    """

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut_at: int | None = None
    drip_s: float | None = None
    close: bool = False
    hang: bool = False
    date: bool = True
    validates: bool = True


def json_response(document: object, status: int = 200, **more: object) -> Response:
    return Response(status=status, body=json.dumps(document).encode(), **more)


def xrpc_error(status: int, error: str, message: str = "", **more: object) -> Response:
    return json_response({"error": error, "message": message}, status, **more)


Answer = Callable[[Request], Response]


class Upstream:
    """Listens on loopback; `answer` decides, `requests` remembers.

    By default it answers 200 with a body that carries the target and `version`, so that a test can tell what
    it was given; ETags are those of the AppView, and If-None-Match is honoured.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Answer = self.feed
        self.version = 1
        self.delay_s = 0.0
        self.hold: asyncio.Event | None = None  # nothing is answered before it is set
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.listens_on = "127.0.0.1"
        self.url = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before if it was stopped."""
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        self._server = await asyncio.start_server(self._serve, self.listens_on, port, backlog=1024)
        self.url = f"http://{self.listens_on}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Refuse connections, and end those there are."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._connections):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    def feed(self, request: Request) -> Response:
        document = {"feed": [], "target": request.target, "version": self.version, "filler": "x" * 600}
        return json_response(document, delay_s=self.delay_s)

    @property
    def count(self) -> int:
        return len(self.requests)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        request = Request(head[0].split(" ")[1], headers, port=writer.get_extra_info("peername")[1])
        self.requests.append(request)
        response = self.answer(request)
        if self.hold is not None:
            await self.hold.wait()
        if response.delay_s:
            await asyncio.sleep(response.delay_s)
        if response.hang:
            await asyncio.Event().wait()
        if response.close:
            return False
        return await self._send(writer, request, response)

    async def _send(self, writer: asyncio.StreamWriter, request: Request, response: Response) -> bool:
        etag = f'W/"{hashlib.sha1(response.body, usedforsecurity=False).hexdigest()}"'
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Content-Length": str(len(response.body)),
            "ETag": etag,
            "Vary": "Accept-Encoding",
            **response.headers,
        }
        status, body = response.status, response.body
        if response.validates and status == 200 and request.headers.get("if-none-match") == etag:
            status, body = 304, b""
            del headers["Content-Length"], headers["Content-Type"]
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
        wire = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        if response.cut_at is not None:
            writer.write(wire[: len(wire) - len(body) + response.cut_at])
            await writer.drain()
            return False
        if response.drip_s is None:
            writer.write(wire)
        else:
            for byte in wire:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(response.drip_s)
        await writer.drain()
        return True

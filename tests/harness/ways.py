"""Two web servers that must not be told apart: one with the short way of hits, one without it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from harness.clock import FakeClock
from harness.proxy import Proxy, listening_proxy, running_proxy
from harness.upstream import Upstream
from harness.valkey import StoreOfTest
from harness.waiting import until
from harness.wire import is_owed

ADMIN_TOKEN = "an-admin-token-of-32-characters-x"
# After so many turns of the loop whatever a unix socket carries has been read at its other end.
_TURNS = 8
# A purge is carried out before the store knows of it, when it does, and when it tells all processes.
_SWEEPS = 3
_DATE = re.compile(rb"(?i)\r\ndate: [^\r]+")
_COUNTED = re.compile(
    r"^(feedproxy_(?:requests_total|flights_started_total|upstream_requests_total|connections)\S*) (\S+)$",
    re.MULTILINE,
)
T = TypeVar("T")


class Heard(NamedTuple):
    """What a client got, whenever that was, and whether the connection has ended."""

    data: bytes
    ended: bool

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.data)]


class Counted:
    """An ASGI application, and how many requests have come to it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await self._app(scope, receive, send)


class Peer(asyncio.Protocol):
    """The client's end of a connection. It reads all the time, unless told otherwise."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._got = bytearray()
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True

    @property
    def heard(self) -> Heard:
        return Heard(_DATE.sub(b"\r\ndate: then", bytes(self._got)), self._ended)

    def write(self, data: bytes) -> None:
        """Send `data`, which the server has not read yet."""
        self._transport.write(data)

    async def send(self, *chunks: bytes) -> None:
        """Send `chunks`, each of which the server reads by itself, answered or not."""
        for chunk in chunks:
            self.write(chunk)
            await turns()

    def stop_reading(self) -> None:
        """Leave unread what comes from now on."""
        self._transport.pause_reading()

    def read_on(self) -> None:
        """Read it, and what comes."""
        self._transport.resume_reading()

    async def end_sending(self) -> None:
        """Say that nothing more will come, and go on reading."""
        if not self._ended:
            self._transport.write_eof()
        await turns()

    async def leave(self) -> None:
        """Go away."""
        self._transport.abort()
        await turns()


class Way:
    """A proxy with one way of answering hits, where it listens; it has its own upstream, store and clock."""

    def __init__(self, proxy: Proxy, upstream: Upstream, app: Counted, listener: socket.socket) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.app = app
        self._listener = listener
        self.address = listener.getsockname()
        self._told = 0
        self._metrics: dict[str, float] = {}
        self._sweeps = 0
        purges = proxy.web.reading.purges
        self._sweep, purges.swept = purges.swept, self._swept

    def _swept(self) -> None:
        self._sweeps += 1
        self._sweep()

    async def connect(self) -> Peer:
        _, peer = await asyncio.get_running_loop().create_unix_connection(Peer, self.address)
        return peer

    @property
    def has_stopped_listening(self) -> bool:
        return self._listener.fileno() < 0

    @property
    def _busy(self) -> bool:
        if self.proxy.server is None:
            return True
        state = self.proxy.server.server_state
        return bool(state.tasks) or any(map(is_owed, state.connections))

    async def settled(self) -> None:
        """Wait until nothing is being worked on. The upstream must not hold anything back."""
        while True:
            await until(lambda: not self._busy)
            await self.proxy.landed()
            await turns()
            if not self._busy:
                return

    @contextlib.contextmanager
    def holding(self) -> Iterator[asyncio.Event]:
        """Hold back what the upstream is asked in this block, until it ends or the event is set."""
        before, self.upstream.hold = self.upstream.hold, asyncio.Event()
        try:
            yield self.upstream.hold
        finally:
            self.upstream.hold.set()
            self.upstream.hold = before

    async def purge(self, target: str) -> None:
        """Declare what is held for `target` dead, and wait until this has come back as news."""
        before = self._sweeps
        answer = await self.proxy.client.post(
            "/purge", json={"key": target}, headers={"authorization": f"Bearer {ADMIN_TOKEN}"}
        )
        assert answer.status_code == 200, answer.text
        await until(lambda: self._sweeps == before + _SWEEPS)

    async def exchange(self, *chunks: bytes) -> Heard:
        """What one client hears that sends `chunks`, waiting for the answers after each of them."""
        peer = await self.connect()
        for chunk in chunks:
            if not peer.heard.ended:
                await peer.send(chunk)
                await self.settled()
        heard = peer.heard
        await peer.leave()
        return heard

    async def asked_upstream(self, count: int) -> None:
        """Wait until the upstream has got so many requests."""
        await until(lambda: self.upstream.count >= count)

    async def told(self) -> tuple[list[str], dict[str, float]]:
        """What the upstream was asked since the last time, and by how much which metrics have changed."""
        asked = [request.target for request in self.upstream.requests[self._told :]]
        found = _COUNTED.findall((await self.proxy.get("/metrics")).text)
        metrics = {name: float(value) for name, value in found}
        changed = {name: value - self._metrics.get(name, 0.0) for name, value in metrics.items()}
        self._metrics, self._told = metrics, self.upstream.count
        return sorted(asked), {name: by for name, by in changed.items() if by}


class Ways:
    """Both."""

    def __init__(self, short: Way, ordinary: Way) -> None:
        self.short = short
        self.ordinary = ordinary

    async def same(self, script: Callable[[Way], Awaitable[T]]) -> T:
        """What `script` returns, which it does on both alike, and they have told and asked the same."""
        short, ordinary = [await script(way) for way in (self.short, self.ordinary)]
        _alike(short, ordinary)
        _alike(await self.short.told(), await self.ordinary.told())
        return short

    async def say(self, *chunks: bytes) -> Heard:
        """What both answer to a client that sends `chunks`."""
        return await self.same(lambda way: way.exchange(*chunks))

    async def taken(self, *chunks: bytes) -> int:
        """How many of the requests in `chunks` took the short way."""
        before = self._saved
        await self.say(*chunks)
        return self._saved - before

    @property
    def _saved(self) -> int:
        return self.ordinary.app.asked - self.short.app.asked


async def told_to(*peers: Peer) -> list[Heard]:
    """What they heard; then they leave."""
    heard = [peer.heard for peer in peers]
    for peer in peers:
        await peer.leave()
    return heard


def _alike(short: object, ordinary: object) -> None:
    if short != ordinary:
        told = f"the short way:\n{short}\nthe ordinary way:\n{ordinary}"
        raise AssertionError(re.sub(r"x{100,}", "x…", told))


async def turns(count: int = _TURNS) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.contextmanager
def _listener(*, tcp: bool) -> Iterator[socket.socket]:
    if tcp:
        yield socket.create_server(("127.0.0.1", 0))
        return
    with tempfile.TemporaryDirectory(prefix="fp-") as directory:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{directory}/s")
        yield listener


@contextlib.asynccontextmanager
async def one_way(
    valkey_url: str, *, short: bool, tcp: bool = False, **settings: object
) -> AsyncIterator[Way]:
    """The short way, or the ordinary one alone; on a unix socket, or on loopback for others than us."""
    with contextlib.closing(StoreOfTest(valkey_url, f"test-{uuid.uuid4().hex[:12]}")) as store:
        async with (
            Upstream() as upstream,
            running_proxy(
                upstream.url, store, clock=FakeClock(), ADMIN_TOKEN=ADMIN_TOKEN, **settings
            ) as proxy,
        ):
            app = Counted(proxy.web.app)
            web = dataclasses.replace(proxy.web, app=app)
            # With an access log every request goes the ordinary way.
            logged = proxy.settings.model_copy(update={"access_log": not short})
            served = Proxy(proxy.client, proxy.clock, store, web, logged, proxy.process)
            with _listener(tcp=tcp) as listener:
                async with listening_proxy(served, listener):
                    yield Way(served, upstream, app, listener)


@contextlib.asynccontextmanager
async def both_ways(valkey_url: str, **settings: object) -> AsyncIterator[Ways]:
    """Both ways with the same `settings`."""
    async with (
        one_way(valkey_url, short=True, **settings) as short,
        one_way(valkey_url, short=False, **settings) as ordinary,
    ):
        yield Ways(short, ordinary)

"""The proxy inside the test's own process, built by the same hands as in production."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import httpx

from harness.clock import FakeClock
from harness.valkey import StoreOfTest
from proxy.clock import SystemClock
from proxy.observing import Process
from proxy.runtime import WebApp, web_app
from proxy.settings import Settings, load_settings
from proxy.web_server import WebServer, web_server

FEED = "/xrpc/app.bsky.feed.getAuthorFeed"


def feed(actor: str = "alice.test", **params: object) -> str:
    """The target of an author feed."""
    return f"{FEED}?{urlencode({'actor': actor, **params})}"


class Proxy:
    """A running web process; `get` is a client of it."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        clock: FakeClock | SystemClock,
        store: StoreOfTest,
        web: WebApp,
        settings: Settings,
        process: Process,
    ) -> None:
        self.client = client
        self.clock = clock
        self.store = store
        self.web = web
        self.settings = settings
        self.process = process
        self.server: WebServer | None = None  # while it listens

    async def landed(self) -> None:
        """Wait until nothing is under way: no flight, no write to the store."""
        kinds = ("flight ", "gate ", "store ")
        async with asyncio.timeout(20):
            while tasks := [task for task in asyncio.all_tasks() if task.get_name().startswith(kinds)]:
                await asyncio.wait(tasks)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass everywhere: for the proxy and for the store."""
        await self.landed()
        self.clock.advance(seconds)
        self.store.let_time_pass(seconds)

    async def get(self, target: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.get(target, headers=named)

    async def together(self, count: int, target: str) -> list[httpx.Response]:
        """`count` clients ask at once."""
        return await asyncio.gather(*(self.get(target) for _ in range(count)))


@contextlib.asynccontextmanager
async def running_proxy(
    upstream_url: str,
    store: StoreOfTest,
    *,
    clock: FakeClock | SystemClock | None = None,
    patience_s: float = 5.0,
    **settings: object,
) -> AsyncIterator[Proxy]:
    """A proxy with a generous budget, unless `settings` (names without prefix) say otherwise.

    It has patience with a store that is slow because the machine is.
    """
    clock = clock or SystemClock()
    given = {
        "UPSTREAM": upstream_url,
        "REDIS_URL": store.url,
        "NAMESPACE": store.namespace,
        "UPSTREAM_RPS": 10_000,
        "UPSTREAM_BURST": 1000,
        "UPSTREAM_CONCURRENCY": 16,
        "CLIENT_MISSES_PER_MIN": 1_000_000,
        "RETRY_BASE_MS": 1,
        "RETRY_CAP_MS": 5,
        **settings,
    }
    loaded = load_settings({f"FEEDPROXY_{name}": str(value) for name, value in given.items()})
    process = Process()
    async with web_app(loaded, clock, process, patience_s=patience_s) as web:
        transport = httpx.ASGITransport(web.app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            yield Proxy(client, clock, store, web, loaded, process)


@contextlib.asynccontextmanager
async def listening_proxy(proxy: Proxy, listener: socket.socket | None = None) -> AsyncIterator[Any]:
    """`proxy` behind its own HTTP server on `listener`, or on loopback; the address."""
    server = web_server(proxy.web.app, proxy.settings, proxy.web.reading.hits.answer)
    proxy.web.watch(server)
    proxy.server = server
    with listener or socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)  # noqa: FBT003
        address = listener.getsockname()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening.wait()
        try:
            yield address
        finally:
            server.should_exit = True
            await serving

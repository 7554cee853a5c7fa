"""Whatever becomes of Redis: every client is answered, and the fleet is in step again when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import redis

from harness.fleet import everywhere, fleet
from harness.proxy import feed
from harness.valkey import StoreOfTest, valkey_server
from harness.waiting import until

NAMESPACE = "outage"
MEMORY = "maxmemory"


class Relay:
    """A way to Redis that may be slow: what is said arrives `delay_s` later, in both directions together."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        there, back = await asyncio.open_unix_connection(self._socket_path)
        for source, sink, delayed in ((reader, back, True), (there, writer, False)):
            task = asyncio.create_task(self._pass_on(source, sink, delayed=delayed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source, sink, *, delayed):
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if delayed and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                sink.write(data)
        sink.close()


class Faults:
    """A Redis of the test's own, and what can go wrong with it."""

    def __init__(self, relay: Relay, socket_path: str) -> None:
        self.relay = relay
        self.store = StoreOfTest(relay.url, NAMESPACE)
        self._client = redis.Redis(unix_socket_path=socket_path)
        self._pid = self._client.info("server")["process_id"]

    def begin(self, fault: str) -> None:
        match fault:
            case "stopped":
                os.kill(self._pid, signal.SIGSTOP)
            case "killed":
                os.kill(self._pid, signal.SIGKILL)
            case "read-only":
                self._client.replicaof("127.0.0.1", 1)
            case "flushed":
                self._client.flushall()
            case "slow":
                self.relay.delay_s = 1.0
            case "full":
                self._client.config_set(MEMORY, 1)

    def end(self, fault: str) -> None:
        match fault:
            case "stopped":
                os.kill(self._pid, signal.SIGCONT)
            case "read-only":
                self._client.replicaof("NO", "ONE")
            case "slow":
                self.relay.delay_s = 0.0
            case "full":
                self._client.config_set(MEMORY, 0)


@pytest.fixture
async def faults(tmp_path):
    with valkey_server(directory=tmp_path) as url:
        socket_path = url.removeprefix("unix://")
        async with Relay(socket_path).listening() as relay:
            yield Faults(relay, socket_path)


@pytest.mark.parametrize("fault", ["stopped", "killed", "read-only", "flushed", "slow", "full"])
async def test_every_client_is_answered(upstream, faults, fault):
    upstream.delay_s = 0.05
    numbers = itertools.count()
    async with fleet(2, upstream.url, faults.store, patience_s=0.08) as proxies:
        known = [feed(f"known{number}.test") for number in range(10)]
        await everywhere(proxies, 1, *known)
        faults.begin(fault)
        for _ in range(3):
            new = [feed(f"new{next(numbers)}.test") for _ in range(5)]
            answers = await everywhere(proxies, 3, *known, *new)
            assert {answer.status_code for answer in answers} == {200}
            for answer in answers:
                if "known" in answer.json()["target"]:
                    assert answer.headers["cache-status"].startswith("feedproxy; hit")
        for request in {request.target for request in upstream.requests}:
            asked = sum(each.target == request for each in upstream.requests)
            assert asked <= 2, "a process asked twice"
        if fault == "killed":
            return
        faults.end(fault)

        async def in_step():
            target = feed(f"back{next(numbers)}.test")
            asked = upstream.count
            await everywhere(proxies, 2, target)
            return upstream.count == asked + 1

        assert await until(in_step)
        assert (await proxies[0].get("/health")).json()["status"] in ("pass", "warn")


async def test_the_budget_without_the_store_is_split(upstream, faults):
    limits = {"UPSTREAM_RPS": 8, "UPSTREAM_BURST": 4, "UPSTREAM_TIMEOUT": 2, "DEGRADED_SHARE": 0.25}
    async with fleet(2, upstream.url, faults.store, patience_s=0.08, **limits) as proxies:
        faults.begin("killed")
        began_at = time.monotonic()
        answers = await everywhere(proxies, 1, *(feed(f"a{number}.test") for number in range(20)))
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    took_s = max(request.at for request in upstream.requests) - began_at
    assert 2 <= upstream.count <= 2 * (1 + 2 * took_s + 1)


async def test_a_purge_without_the_store_says_so(upstream, faults):
    token = "t" * 32
    async with fleet(1, upstream.url, faults.store, patience_s=0.08, ADMIN_TOKEN=token) as [proxy]:
        await proxy.get(feed())
        faults.begin("killed")
        answer = await proxy.client.post(
            "/purge", json={"all": True}, headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 503
        assert answer.json()["error"] == "StoreUnavailable"
        upstream.version = 2
        assert (await proxy.get(feed())).json()["version"] == 2

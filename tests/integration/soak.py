"""A soak: readers of a fleet, an upstream and a Redis that fail, purges; every body is checked, to the byte.

A body carries its key and its version, and its length follows from both: what is mixed, cut or another's is
seen. A version never goes back on one connection, whose process it is; after a purge that was confirmed none
comes from before it. What happens follows from a seed; when it happens, from the machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from harness.faults import FAULTS, Faults, faulty_redis
from harness.hosts import ports_of, running_hosts
from harness.load import Asker, askers
from harness.proxy import feed
from harness.upstream import Request, Response, Upstream, xrpc_error
from harness.waiting import until
from integration.processes import ServeProcess

TOKEN = "an-admin-token-of-32-characters-x"
CONNECTIONS = 96
_VERSION = re.compile(rb'"version":(\d+)')
# A purge is everywhere after 100 ms, unless the machine is busy with other things.
_PURGED_S = 1.0
# All processes are in step again so soon after Redis is back.
_IN_STEP_S = 3.0
# What the upstream does now and then; else it answers, sooner or later.
_TROUBLES = (
    xrpc_error(500, "InternalServerError"),
    xrpc_error(503, "NotNow"),
    xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": "1"}),
    Response(close=True),
    Response(body=b"<html>not json</html>"),
    Response(body=b'{"cut": true, "filler": "' + b"y" * 900, cut_at=400),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how often; `pause_s` lies between two incidents."""

    seed: int
    requests: int
    keys: int
    pause_s: float
    fault_s: float


@dataclass
class Result:
    """What came of it. `wrong` are bodies that nobody should have been given."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    incidents: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    took_s: float = 0.0
    rss_mb: list[float] = field(default_factory=list)  # of all web processes together, evenly over the run

    @property
    def growth(self) -> float:
        """Of the last fifth over the third one: before that the caches fill."""
        fifth = len(self.rss_mb) // 5
        before, after = self.rss_mb[2 * fifth : 3 * fifth], self.rss_mb[-fifth:]
        return sum(after) / len(after) / (sum(before) / len(before)) - 1

    def line(self) -> str:
        """The figures."""
        rate = sum(self.statuses.values()) / self.took_s
        return (
            f"{sum(self.statuses.values())} answers in {self.took_s:.0f} s ({rate:.0f}/s) "
            f"{dict(self.statuses)}, "
            f"{self.lost} lost, {len(self.wrong)} wrong, rss {self.rss_mb[0]:.0f}-{self.rss_mb[-1]:.0f} MB "
            f"({100 * self.growth:+.1f} %), {dict(self.incidents)}"
        )


def body_of(target: str, version: int) -> bytes:
    """What the upstream answers."""
    digest = hashlib.blake2b(f"{target} {version}".encode(), digest_size=8).hexdigest()
    filler = digest * (20 + int(digest[:2], 16))
    return f'{{"target":"{target}","version":{version},"filler":"{filler}","end":"{digest}"}}'.encode()


class Soak:
    """One run."""

    def __init__(self, plan: Plan, hosts: Sequence[ServeProcess], upstream: Upstream, redis: Faults) -> None:
        self._plan = plan
        self._hosts = hosts
        self._upstream = upstream
        self._redis = redis
        self._draw = random.Random(plan.seed)
        self._targets = [feed(f"soak{number}.test") for number in range(plan.keys)]
        self._versions = dict.fromkeys(self._targets, 1)
        self._floors: dict[str, tuple[float, int]] = {}  # from when on no older version is right
        self._unsteady_until = 0.0
        self._troubled = False
        self._asked = 0
        self.result = Result()

    async def run(self) -> Result:
        """Everything at once, until there were enough requests."""
        self._upstream.answer = self._answer
        began_at = time.monotonic()
        connections = await askers(ports_of(self._hosts), CONNECTIONS)
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self._incidents()), group.create_task(self._weigh())]
            reading = [group.create_task(self._read(number, one)) for number, one in enumerate(connections)]
            await asyncio.wait(reading)
            for task in others:
                task.cancel()
        self.result.took_s = time.monotonic() - began_at
        return self.result

    def _answer(self, request: Request) -> Response:
        self._upstream.requests.clear()
        if self._draw.random() < (0.7 if self._troubled else 0.02):
            return self._draw.choice(_TROUBLES)
        if self._draw.random() < 0.3:
            self._versions[request.target] += 1
        delay_s = self._draw.choice((0.0, 0.0, 0.0, 0.02, 0.3))
        return Response(body=body_of(request.target, self._versions[request.target]), delay_s=delay_s)

    async def _read(self, number: int, connection: Asker) -> None:
        draw = random.Random(f"{self._plan.seed} {number}")
        seen: dict[str, int] = {}
        while self._asked < self._plan.requests:
            self._asked += 1
            # A few are asked for often, all of them now and then.
            target = self._targets[int(len(self._targets) * draw.random() ** 4)]
            try:
                got = await connection.ask(target)
            except (OSError, TimeoutError):
                self.result.lost += 1
                [connection] = await askers(ports_of(self._hosts)[number % len(self._hosts) :], 1)
                seen.clear()
                continue
            self.result.statuses[got.status] += 1
            if got.status == 200:
                self._check(target, got.asked_at, got.body, seen)
        connection.close()

    def _check(self, target: str, asked_at: float, body: bytes, seen: dict[str, int]) -> None:
        told = _VERSION.search(body)
        version = int(told[1]) if told else 0
        since, floor = self._floors.get(target, (asked_at, 0))
        if body != body_of(target, version):
            self.result.wrong.append(f"{target}: {body[:200]!r}")
        elif version > self._versions[target]:
            self.result.wrong.append(f"{target}: version {version} is not there yet")
        elif version < seen.get(target, 0):
            self.result.wrong.append(f"{target}: version {version} after {seen[target]}")
        elif version < floor and asked_at > max(since + _PURGED_S, self._unsteady_until):
            self.result.wrong.append(
                f"{target}: version {version} {asked_at - since:.2f} s after it was purged at {floor}"
            )
        seen[target] = max(version, seen.get(target, 0))

    async def _incidents(self) -> None:
        ways = ["redis", "upstream", "purge", "purge", "purge", "restart"]
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            while True:
                await asyncio.sleep(self._plan.pause_s)
                match self._draw.choice(ways):
                    case "redis":
                        await self._redis_fails(self._draw.choice(FAULTS))
                    case "upstream":
                        self.result.incidents["upstream troubled"] += 1
                        self._troubled = True
                        await asyncio.sleep(self._plan.fault_s)
                        self._troubled = False
                    case "restart":
                        self.result.incidents["upstream restarted"] += 1
                        await self._upstream.stop()
                        await asyncio.sleep(self._plan.fault_s)
                        await self._upstream.start()
                    case "purge":
                        await self._purge(client)

    async def _redis_fails(self, fault: str) -> None:
        self.result.incidents[f"redis {fault}"] += 1
        self._unsteady_until = float("inf")
        self._redis.begin(fault)
        await asyncio.sleep(self._plan.fault_s)
        self._redis.end(fault)
        self._unsteady_until = time.monotonic() + _IN_STEP_S

    async def _purge(self, client: httpx.AsyncClient) -> None:
        """From now on there are newer versions, and what was before is dead."""
        target = self._draw.choice(self._targets[:20])
        everything = self._draw.random() < 0.1
        concerned = self._targets if everything else [target]
        for each in concerned:
            self._versions[each] += 1
        floors = {each: self._versions[each] for each in concerned}
        answer = await client.post(
            f"{self._draw.choice(self._hosts).base_url}/purge",
            json={"all": True} if everything else {"key": target},
            headers={"authorization": f"Bearer {TOKEN}"},
        )
        self.result.incidents[f"purge {answer.status_code}"] += 1
        if answer.status_code == 200:
            now = time.monotonic()
            self._floors.update({each: (now, version) for each, version in floors.items()})

    async def _weigh(self) -> None:
        """The memory that is resident, a hundred times during the run."""
        for number in range(100):
            due = number * self._plan.requests // 100
            await until(lambda: self._asked >= due, deadline_s=3600, every_s=0.05)  # noqa: B023
            self.result.rss_mb.append(sum(_rss_mb(pid) for host in self._hosts for pid in host.web_pids()))


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


async def soak(plan: Plan, directory: Path) -> Result:
    """Two hosts of two processes, with little time and little budget for answers that fail."""
    settings = {
        "WORKERS": 2,
        "ADMIN_TOKEN": TOKEN,
        "CACHE_TTL": 5,
        "NEGATIVE_TTL": 5,
        "UPSTREAM_TIMEOUT": 2,
        "RETRY_BASE_MS": 20,
        "RETRY_CAP_MS": 100,
        "BREAKER_COOLDOWN": 1,
    }
    async with (
        faulty_redis() as redis,
        Upstream() as upstream,
        running_hosts(
            directory, [None, None], REDIS_URL=redis.url, UPSTREAM=upstream.url, **settings
        ) as hosts,
    ):
        return await Soak(plan, hosts, upstream, redis).run()

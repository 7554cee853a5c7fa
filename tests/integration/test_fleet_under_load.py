"""Redis fails, and another version is rolled out, while readers ask: nobody notices.

Real processes, under faults those that are delivered. In CI nothing is said of how long things take; with
`--long` they are in time, compared with the calm before each fault. Figures are printed (`-s`).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from harness.faults import FAULTS, faulty_redis
from harness.hosts import NEWER, PATIENT, ports_of, running_hosts
from harness.load import Got, ask_together, askers, percentile_ms
from harness.proxy import feed
from harness.redis_servers import redis_server
from harness.upstream import Upstream
from harness.waiting import until

pytestmark = pytest.mark.timeout(600)

PER_S = 200
PROCESSES = 2  # of each host
UPSTREAM_S = 0.05
KNOWN = [feed(f"known{number}.test") for number in range(10)]


@dataclass
class Phase:
    """What readers got while things were so."""

    hits: list[Got] = field(default_factory=list)
    misses: list[Got] = field(default_factory=list)
    lost: list[BaseException] = field(default_factory=list)

    def add(self, other):
        self.hits += other.hits
        self.misses += other.misses
        self.lost += other.lost

    def line(self):
        parts = [f"{len(self.lost)} lost"]
        for what, answers in (("hits", self.hits), ("misses", self.misses)):
            times = [answer.took_s for answer in answers]
            shares = [f"p{100 * share:g} {percentile_ms(times, share):.1f}" for share in (0.5, 0.99, 1)]
            parts.append(f"{len(answers)} {what}: {' '.join(shares)} ms")
        return ", ".join(parts)


class Readers:
    """Ask so often a second, whether or not there was an answer; one in ten asks for something new."""

    def __init__(self, ports):
        self._ports = itertools.cycle(ports)
        self._free = []
        self._numbers = itertools.count()

    async def ask(self, seconds):
        phase = Phase()
        began_at, count = time.monotonic(), round(seconds * PER_S)
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await asyncio.sleep(began_at + number / PER_S - time.monotonic())
                new = number % 10 == 0
                target = feed(f"new{next(self._numbers)}.test") if new else KNOWN[number % len(KNOWN)]
                group.create_task(self._ask(target, phase))
        return phase

    async def _ask(self, target, phase):
        try:
            connection = await self._connection()
            got = await connection.ask(target)
        except (OSError, TimeoutError) as error:
            phase.lost.append(error)
            return
        self._free.append(connection)
        if got.status != 200:
            phase.lost.append(AssertionError(f"{got.status} {got.body[:200]!r}"))
        (phase.hits if got.hit else phase.misses).append(got)

    async def _connection(self):
        """One that is free, and was not idle for so long that the server has closed it."""
        while self._free:
            connection = self._free.pop()
            if not connection.closed:
                return connection
        [connection] = await askers([next(self._ports)], 1)
        return connection

    def close(self):
        for connection in self._free:
            connection.close()


async def all_hold(hosts, targets):
    """Ask each host for all targets; whether each of its processes has them in memory, and nothing else."""
    for port in ports_of(hosts):
        await ask_together([port], targets, 8 * len(targets))
    told = [(await asyncio.to_thread(host.get, "/metrics"))[1].decode() for host in hosts]
    held = [re.search(r"^feedproxy_memory_entries (\S+)", text, re.MULTILINE) for text in told]
    return all(found and float(found[1]) == PROCESSES * len(targets) for found in held)


async def test_each_fault_of_redis(tmp_path, long):
    rounds, calm_s, fault_s = (3, 3.0, 3.0) if long else (1, 0.7, 1.2)
    async with (
        faulty_redis() as redis,
        Upstream() as upstream,
        running_hosts(
            tmp_path, [None, None], WORKERS=PROCESSES, REDIS_URL=redis.url, UPSTREAM=upstream.url
        ) as hosts,
    ):
        upstream.delay_s = UPSTREAM_S
        ports = ports_of(hosts)
        await until(lambda: all_hold(hosts, KNOWN), every_s=0.05)
        readers = Readers(ports)
        back = itertools.count()

        async def in_step():
            """All processes share a flight again."""
            upstream.requests.clear()
            await ask_together(ports, [feed(f"back{next(back)}.test")], 32)
            return upstream.count == 1

        calm, faulty = {f: Phase() for f in FAULTS}, {f: Phase() for f in FAULTS}
        slowest_back_s = Counter()
        for _ in range(rounds):
            for fault in FAULTS:
                calm[fault].add(await readers.ask(calm_s))
                redis.begin(fault)
                faulty[fault].add(await readers.ask(fault_s))
                redis.end(fault)
                ended_at = time.monotonic()
                await until(in_step, every_s=0.05)
                slowest_back_s[fault] = max(slowest_back_s[fault], time.monotonic() - ended_at)
        readers.close()
    for fault in FAULTS:
        for what, phase in (("calm", calm[fault]), (fault, faulty[fault])):
            print(f"\n{fault:>9} {what:>9}: {phase.line()}", end="")  # noqa: T201
        print(f", in step after {slowest_back_s[fault]:.2f} s", end="")  # noqa: T201
    print()  # noqa: T201
    for fault in FAULTS:
        assert calm[fault].lost == faulty[fault].lost == []
        for phase in (calm[fault], faulty[fault]):
            assert phase.hits, fault
            assert [got.cache_status for got in phase.misses if got.target in KNOWN] == [], fault
        if long:
            usual, now = (
                percentile_ms((got.took_s for got in phase[fault].hits), 0.99) for phase in (calm, faulty)
            )
            assert now <= usual + 1, fault
            missed = percentile_ms((got.took_s for got in faulty[fault].misses), 0.99)
            assert missed <= 1000 * UPSTREAM_S + 100, fault
            assert slowest_back_s[fault] <= 2, fault


async def test_two_versions_in_one_fleet(tmp_path, long):
    """The next version writes another format of entries, which the present one cannot read."""
    seconds, keys, ttl_s = (30, 200, 5) if long else (6, 40, 2)
    targets = [feed(f"both{number}.test") for number in range(keys)]
    with redis_server() as server:
        async with (
            Upstream() as upstream,
            running_hosts(
                tmp_path,
                [PATIENT, NEWER],
                WORKERS=PROCESSES,
                REDIS_URL=server.url,
                UPSTREAM=upstream.url,
                CACHE_TTL=ttl_s,
            ) as hosts,
        ):
            old, new = ports_of(hosts)
            # What the old version has stored is not lost on the new one.
            began_at = time.monotonic()
            answers = await ask_together([old], targets, keys)
            assert {answer.status for answer in answers} == {200}
            assert all(answer.hit for answer in await ask_together([new], targets, keys))
            connections = await askers([old, new], 32)
            until_at = time.monotonic() + seconds
            answers = []

            async def read(draw, connection):
                while time.monotonic() < until_at:
                    answers.append(await connection.ask(draw.choice(targets)))
                    await asyncio.sleep(0.005)

            await asyncio.gather(*(read(random.Random(n), one) for n, one in enumerate(connections)))
            took_s = time.monotonic() - began_at
            for one in connections:
                one.close()
            for host in hosts:
                assert not host.events("flight_crashed")
    hits = sum(answer.hit for answer in answers)
    # A copy is refreshed once a lifetime by each version at most, which is at least 0.8 of the TTL.
    allowed = keys * (1 + 2 * (1 + took_s / (0.8 * ttl_s)))
    print(f"\ntwo versions: {len(answers)} answers, {hits} hits, {upstream.count} requests of {allowed:.0f}")  # noqa: T201
    assert {answer.status for answer in answers} == {200}
    assert hits == len(answers), "a copy was lost"
    assert upstream.count <= allowed

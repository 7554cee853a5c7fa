"""What the fleet promises, shown by real processes: two hosts of four around one Redis.

In CI with processes that are patient with a busy machine, and without a word on how long things take; with
`--long` at full size, as they are delivered, and in time. Figures are printed (`-s`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from harness.hosts import PATIENT, ports_of, running_hosts
from harness.load import ask_together, askers, percentile_ms
from harness.proxy import feed
from harness.redis_servers import redis_server
from harness.upstream import Response, Upstream, json_response, xrpc_error
from harness.waiting import until
from integration.processes import ServeProcess

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

TOKEN = "an-admin-token-of-32-characters-x"
STALE_TTL_S = 4
TENANTS = f"""
[[feeds]]
method = "app.bsky.actor.getProfile"
ttl_s = {STALE_TTL_S}
"""


@dataclass
class FleetOfTest:
    """Two hosts before one upstream."""

    hosts: list[ServeProcess]
    upstream: Upstream

    @property
    def ports(self):
        return ports_of(self.hosts)

    @property
    def pids(self):
        return [pid for host in self.hosts for pid in host.web_pids()]

    def counts(self):
        """How often the upstream was asked for each target since the last time."""
        counts = Counter(request.target for request in self.upstream.requests)
        self.upstream.requests.clear()
        return counts

    def reset(self):
        self.counts()
        self.upstream.answer, self.upstream.delay_s = self.upstream.feed, 0.0

    async def purge(self, document):
        async with httpx.AsyncClient(base_url=self.hosts[0].base_url, verify=False) as client:
            headers = {"authorization": f"Bearer {TOKEN}"}
            return (await client.post("/purge", json=document, headers=headers)).status_code


@contextlib.asynccontextmanager
async def fleet_of_eight(directory, *, long, **settings):
    config = directory / "feedproxy.toml"
    config.write_text(TENANTS, encoding="utf-8")
    program = None if long else PATIENT
    given = {"CONFIG": config, "ADMIN_TOKEN": TOKEN, "WORKERS": 4, **settings}
    with redis_server() as server:
        async with (
            Upstream() as upstream,
            running_hosts(
                directory, [program] * 2, REDIS_URL=server.url, UPSTREAM=upstream.url, **given
            ) as hosts,
        ):
            yield FleetOfTest(hosts, upstream)


@pytest.fixture(scope="module")
def module_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("fleet")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def eight(module_directory, long):
    async with fleet_of_eight(module_directory, long=long) as fleet:
        yield fleet


@pytest.fixture
def fleet(eight):
    eight.reset()
    return eight


def told(what, answers, **more):
    """Print how it went."""
    times = [answer.took_s for answer in answers]
    shares = " ".join(f"p{share * 100:g} {percentile_ms(times, share):.0f}" for share in (0.5, 0.99, 1))
    say(what, f"{len(answers)} answers, {shares} ms", **more)


def say(what, *said, **more):
    """Print it."""
    print(f"\n{what}:", *said, *(f"{name}={value}" for name, value in more.items()))  # noqa: T201


async def test_400_clients_on_a_cold_key_cost_one_request(fleet, long):
    fleet.upstream.delay_s = 0.1
    for number in range(5 if long else 1):
        answers = await ask_together(fleet.ports, [feed(f"cold{number}.test")], 400)
        counts = fleet.counts()
        told("400 clients, one cold key", answers, upstream=counts.total())
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        assert counts.total() == 1
        if long:
            assert percentile_ms((answer.took_s for answer in answers), 0.99) <= 300


async def test_100_keys_at_once_cost_100_requests(fleet):
    fleet.upstream.delay_s = 0.1
    targets = [feed(f"many{number}.test") for number in range(100)]
    answers = await ask_together(fleet.ports, targets, 400)
    counts = fleet.counts()
    told("400 clients, 100 cold keys", answers, upstream=counts.total())
    assert {answer.status for answer in answers} == {200}
    assert counts == dict.fromkeys(targets, 1)


async def test_keys_that_turn_stale_under_load_cost_one_refresh_each(fleet, long):
    """Between two requests for a key lies at least its lifetime, at the shortest that may be drawn."""
    targets = [
        f"/xrpc/app.bsky.actor.getProfile?actor=s{number}.test" for number in range(1000 if long else 100)
    ]
    connections = await askers(fleet.ports, 32)
    at = defaultdict(list)
    until_at = time.monotonic() + (45 if long else 10)
    answers = []

    async def read(draw, connection):
        while time.monotonic() < until_at:
            answers.append(await connection.ask(draw.choice(targets)))

    await asyncio.gather(*(read(random.Random(n), one) for n, one in enumerate(connections)))
    for one in connections:
        one.close()
    for request in fleet.upstream.requests:
        at[request.target].append(request.at)
    gaps = [later - earlier for times in at.values() for earlier, later in itertools.pairwise(times)]
    told(
        "keys turning stale",
        answers,
        keys=len(at),
        refreshes=len(gaps),
        closest_s=round(min(gaps), 2),
        twice=sum(gap <= 0.75 * STALE_TTL_S for gap in gaps),
        out_of_step=sum(len(host.events("store_out_of_step")) for host in fleet.hosts),
    )
    assert {answer.status for answer in answers} == {200}
    assert at.keys() == set(targets)
    assert all(len(times) >= 2 for times in at.values()), "not all of them turned stale"
    assert min(gaps) > 0.75 * STALE_TTL_S, "a key was refreshed twice"


async def test_one_is_told_to_wait_and_after_100_ms_nobody_calls(fleet, long):
    wait_s, patience_s = 3, 0.1 if long else 1.0
    told_at = 0.0

    def answer(request):
        nonlocal told_at
        if not told_at and fleet.upstream.count >= 50:
            told_at = time.monotonic()
            return xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": str(wait_s)})
        return json_response({"feed": []}, delay_s=0.01)

    fleet.upstream.answer = answer
    connections = await askers(fleet.ports, 32)
    answers = []

    async def read(number, connection):
        asked = 0
        while not told_at or time.monotonic() < told_at + wait_s + 0.5:
            asked += 1
            answers.append(await connection.ask(feed(f"wait{number}-{asked}.test")))
            if told_at:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(read(number, one) for number, one in enumerate(connections)))
    for one in connections:
        one.close()
    later = [request.at - told_at for request in fleet.upstream.requests if request.at > told_at]
    early = [at for at in later if at < wait_s - 0.1]
    told("one 429", answers, calls_after=len(early), last_after_ms=round(1000 * max(early, default=0)))
    assert {answer.status for answer in answers} <= {200, 503}
    assert [at for at in early if at > patience_s] == []
    assert [at for at in later if at >= wait_s], "nobody ever called again"


async def test_a_purge_while_the_answer_is_under_way(fleet, long):
    """Whatever is asked for after a purge has reached every host is not what was there before."""
    draw = random.Random(11)
    version = 1
    fleet.upstream.answer = lambda _: json_response(
        {"version": version}, delay_s=draw.choice([0.0, 0.01, 0.05])
    )
    connections = await askers(fleet.ports, 16)
    wrong = 0

    async def all_have(some, target):
        """Whether each is given what there is since the last purge."""
        answers = await asyncio.gather(*(one.ask(target) for one in some))
        return {answer.body for answer in answers} == {b'{"version": %d}' % version}

    count = 1000 if long else 40
    for number in range(count):
        target = feed(f"purged{number}.test")
        early = [asyncio.create_task(one.ask(target)) for one in connections[:8]]
        await asyncio.sleep(draw.choice([0.0, 0.005, 0.02]))
        version += 1
        document = draw.choice([{"actor": f"purged{number}.test"}, {"key": target}, {"all": True}])
        assert await fleet.purge(document) == 200
        if long:
            await asyncio.sleep(0.1)  # so much is promised
        else:
            await until(lambda target=target: all_have(connections[8:], target))
        right = await all_have(connections[8:], target)
        await asyncio.gather(*early)
        wrong += not (right and await all_have(connections, target))
    for one in connections:
        one.close()
    say("purges during fills", count, wrong=wrong)
    assert wrong == 0


async def test_the_leading_process_is_killed(fleet, long):
    """Followers on other processes take over."""
    for number in range(5 if long else 1):
        fleet.upstream.answer = lambda request: (
            Response(hang=True) if fleet.upstream.count == 1 else fleet.upstream.feed(request)
        )
        connections = await askers(fleet.ports, 64)
        target = feed(f"killed{number}.test")
        asking = asyncio.gather(*(one.ask(target) for one in connections), return_exceptions=True)
        await until(lambda: fleet.upstream.count)
        os.kill(_leader(fleet), signal.SIGKILL)
        killed_at = time.monotonic()
        answers = await asking
        took_s = (
            max(each.asked_at + each.took_s for each in answers if not isinstance(each, Exception))
            - killed_at
        )
        lost = sum(isinstance(each, Exception) for each in answers)
        counts = fleet.counts()
        say("leader killed", upstream=counts.total(), last_ms=round(took_s * 1000), lost_with_it=lost)
        assert {each.status for each in answers if not isinstance(each, Exception)} == {200}
        assert 0 < lost < 64
        assert counts.total() <= 2
        if long:
            assert took_s <= 1.5
        for one in connections:
            one.close()
        await until(lambda: len(fleet.pids) == 8)
        for host in fleet.hosts:
            await asyncio.to_thread(host.wait_ready)


def _leader(fleet):
    """The process that has asked the upstream."""
    [request] = fleet.upstream.requests
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    here, there = f":{request.port:04X}", f":{urlsplit(fleet.upstream.url).port:04X}"
    ends = [(line.split()[1:3], line.split()[9]) for line in lines]
    [inode] = [inode for (near, far), inode in ends if near.endswith(here) and far.endswith(there)]

    def has_it(pid):
        links = (path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink())
        return Path(f"socket:[{inode}]") in links

    return next(pid for pid in fleet.pids if has_it(pid))


async def test_the_budget_is_the_fleets(tmp_path, long):
    keys, window_s = (5000, 10.0) if long else (400, 2.0)
    limits = {
        "UPSTREAM_RPS": 5,
        "UPSTREAM_BURST": 6,
        "UPSTREAM_CONCURRENCY": 6,
        "UPSTREAM_TIMEOUT": 10 if long else 2,
    }
    async with fleet_of_eight(tmp_path, long=long, WORKERS=4 if long else 2, **limits) as fleet:
        fleet.upstream.delay_s = 0.05
        connections = await askers(fleet.ports, 200)
        targets = iter([feed(f"budget{number}.test") for number in range(keys)])
        until_at = time.monotonic() + 3 * window_s
        answers = []

        async def read(connection):
            answers.extend([await connection.ask(target) for target in targets])
            while time.monotonic() < until_at:
                answers.append(await connection.ask(feed(f"more{len(answers)}.test")))
                await asyncio.sleep(0.05)

        await asyncio.gather(*(read(one) for one in connections))
        for one in connections:
            one.close()
        at = sorted(request.at for request in fleet.upstream.requests)
    busiest = max(sum(start <= each < start + window_s for each in at) for start in at)
    told("5 a second", answers, upstream=len(at), busiest=busiest, window_s=window_s)
    assert {answer.status for answer in answers} <= {200, 503, 504}
    assert len(answers) >= keys
    assert len(at) >= 5 * window_s, "the budget was not used"
    assert busiest <= 6 + 5 * window_s + 2

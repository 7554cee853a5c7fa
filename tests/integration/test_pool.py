"""How much a PDS is asked at a time: halved by a burst of refusals, back by and by, and others unharmed."""

from __future__ import annotations

import asyncio
import time

import pytest

from harness.newsroom import PASSWORD, Newsroom
from harness.pds import BEFORE
from harness.upstream import json_response
from harness.waiting import until
from proxy.clock import SystemClock
from proxy.ops.families import LAYOUT
from proxy.resilience.adaptive import AdaptivePolicy
from proxy.syndication.slots import MAX_HOSTS, Entry, Slots
from proxy.tally import OTHER, Board, new_memory

NAMES = tuple(f"a{number}" for number in range(8))
ACCOUNTS = {**{name: f"{name}.test" for name in NAMES}, "side": "bob.test"}
SITES = {"blog": NAMES, "news": ["side"]}
NO_BREAKER = {"ACCOUNT_BREAKER_THRESHOLD": 1000}


@pytest.fixture
async def room(store, tmp_path):
    async with Newsroom(store.url, store.namespace, tmp_path).open() as room:
        for name in NAMES:
            room.alices.host(f"did:plc:{name}", f"{name}.test", PASSWORD)
        yield room
        assert room.stored.faults() == []


def too_many(wait_s=1):
    error = {"error": "RateLimitExceeded", "message": "Rate Limit Exceeded"}
    return json_response(error, 429, headers={"retry-after": str(wait_s)})


class Gatehouse:
    """Holds every request that comes to a PDS, until it is opened."""

    def __init__(self, pds):
        self.waiting = 0
        self.open = asyncio.Event()
        self.open.set()
        pds.crossing = self.cross

    async def cross(self, _name, when):
        if when == BEFORE:
            self.waiting += 1
            try:
                await self.open.wait()
            finally:
                self.waiting -= 1


def load(room, host):
    (worker,) = host.workers
    return worker.loads().get(room.alices.url.removeprefix("http://"))


async def posted(room, host, numbers, *, site="blog"):
    return [(await host.send(host.post(number), site=site)).json() for number in numbers]


async def all_done(room, count):
    await until(lambda: room.stored.states() == {"done": count}, every_s=0.05)


async def test_a_burst_of_429s_halves_it_within_a_second_and_it_climbs_back(room):
    gatehouse = Gatehouse(room.alices)
    async with room.host(ACCOUNTS, SITES, WORKER_CONCURRENCY=8, **NO_BREAKER) as host, host.working():
        await posted(room, host, ["first"])
        await all_done(room, 8)
        # Eight at a time.
        address = room.alices.url.removeprefix("http://")
        assert host.counted().numbers["feedproxy_pool_host_limit"] == {(address,): 8}
        gatehouse.open.clear()
        await posted(room, host, range(5))
        await until(lambda: gatehouse.waiting == 8)
        # A burst.
        answer, refused_at = room.alices.answer, []

        def refuse(call):
            refused_at.append(time.monotonic())
            return too_many()

        room.alices.answer = refuse
        gatehouse.open.set()
        await until(lambda: load(room, host).limit < 8)
        halved_s = time.monotonic() - refused_at[0]
        assert halved_s < 1.0
        await until(lambda: len(refused_at) == 8)
        gatehouse.open.clear()
        room.alices.answer = answer
        # Now four at a time, and the others stand aside; they hold up no other server.
        await until(lambda: gatehouse.waiting == 4 and load(room, host).aside == 4)
        assert (load(room, host).limit, load(room, host).busy) == (4, 4)
        for job in await posted(room, host, range(5), site="news"):
            await host.until_shown(job, "side", site="news", status="completed")
        assert gatehouse.waiting == 4
        gatehouse.open.set()
        await all_done(room, 8 + 40 + 5)
        assert load(room, host).limit == 8
    assert len({rkey for _, rkey, _ in room.alices.commits}) == len(room.alices.commits) == 48


async def test_a_server_that_limits_by_rate_is_used_to_four_fifths(room):
    # So slow that a busy machine keeps up with it.
    per_s, posts = 4, 5
    granted, bucket = [], [time.monotonic(), 0.0]
    answer = room.alices.answer

    def limited(call):
        if call.name != "putRecord":
            return answer(call)
        now = time.monotonic()
        bucket[:] = now, min(per_s, bucket[1] + (now - bucket[0]) * per_s)
        if bucket[1] < 1:
            return too_many()
        bucket[1] -= 1
        granted.append(now)
        return answer(call)

    async with room.host(ACCOUNTS, SITES, WORKER_CONCURRENCY=8, **NO_BREAKER) as host:
        await posted(room, host, range(posts))
        room.alices.answer = limited
        bucket[:] = time.monotonic(), 0.0
        async with host.working():
            await all_done(room, 8 * posts)
    took_s = granted[-1] - granted[0]
    assert len(granted) == 8 * posts
    assert (len(granted) - 1) / took_s >= 0.8 * per_s, took_s


async def test_what_stands_aside_goes_back_when_its_account_is_paused_or_the_worker_ends(room):
    gatehouse = Gatehouse(room.alices)
    async with room.host(ACCOUNTS, SITES, WORKER_CONCURRENCY=8, **NO_BREAKER) as host, host.working():
        await posted(room, host, ["first"])
        await all_done(room, 8)
        host_name = room.alices.url.removeprefix("http://")
        worker = host.workers[0]
        for _ in range(6):
            worker._slots.heard(host_name, 429, time.clock_gettime(time.CLOCK_BOOTTIME))
        assert load(room, host).limit == 1
        gatehouse.open.clear()
        await posted(room, host, range(1))
        await until(lambda: gatehouse.waiting == 1 and load(room, host).aside == 7)
        assert room.stored.states()["active"] == 8
        for name in NAMES:
            await host.posts.queue.pause(name, paused=True)
        gatehouse.open.set()
        await until(lambda: room.stored.states() == {"done": 9, "ready": 7})
        for name in NAMES:
            await host.posts.queue.pause(name, paused=False)
        await all_done(room, 16)
        gatehouse.open.clear()
        for _ in range(6):
            worker._slots.heard(host_name, 429, time.clock_gettime(time.CLOCK_BOOTTIME))
        await posted(room, host, range(1, 2))
        await until(lambda: gatehouse.waiting == 1 and load(room, host).aside == 7)
        worker.stop()
        await until(lambda: room.stored.states() == {"done": 16, "ready": 7, "active": 1})
        gatehouse.open.set()
    assert room.stored.states() == {"done": 17, "ready": 7}


def test_metrics_tell_what_each_host_bears_and_of_very_many_the_least(clock):
    slots = Slots(AdaptivePolicy(ceiling=8, burst=1), clock)
    board = Board(LAYOUT, new_memory())
    tally = board.tally()
    tally.found("feedproxy_pool_host_limit", slots.limits)

    def told():
        tally.beat(clock.steady())
        return board.totals(clock.steady()).numbers["feedproxy_pool_host_limit"]

    for number in range(MAX_HOSTS - 1):
        slots.heard(f"{number}.example", 200, clock.steady())
    slots.heard("1.example", 429, clock.steady())
    assert told() == {(f"{number}.example",): 4 if number == 1 else 8 for number in range(MAX_HOSTS - 1)}
    for name, status in (("last", 503), ("first", 200)):
        slots.heard(f"{name}.of.many.example", status, clock.steady())
    assert (len(told()), told()[OTHER,]) == (MAX_HOSTS, 4)
    slots.heard("last.of.many.example", 429, clock.steady())
    assert (len(told()), told()[OTHER,]) == (MAX_HOSTS, 2)


async def test_slots_are_given_in_the_order_of_coming():
    slots = Slots(AdaptivePolicy(ceiling=2), SystemClock())
    entered = []

    async def enter(name, host):
        assert await slots.enter(host) is not Entry.CLOSED
        entered.append(name)

    tasks = [asyncio.create_task(enter(n, h)) for n, h in enumerate(("x", "x", "x", "y", "x"))]
    await until(lambda: len(entered) == 2)
    assert entered == [0, 1]
    tasks[2].cancel()
    await asyncio.wait({tasks[2]})
    slots.leave("x")
    slots.leave("x")
    await asyncio.gather(*tasks[3:])
    assert entered == [0, 1, 3, 4]
    waiting = asyncio.create_task(slots.enter("y"))
    await asyncio.sleep(0)
    slots.close()
    assert await waiting is Entry.CLOSED
    assert await slots.enter("y") is Entry.CLOSED

"""The pace before PDSs: the shared bucket decides as the pure one does, and accounts are islands."""

from __future__ import annotations

import random

import pytest
from pydantic import SecretStr

from harness.clock import FakeClock
from integration.publishing import Switch
from proxy.clock import SystemClock
from proxy.errors import PdsBusy
from proxy.resilience.limiter import Bucket, Rate
from proxy.resilience.pace import LocalPace, SharedPace, wait_for_turn
from proxy.store.queue_store import connect_queue

HOST, OTHER = "pds.example", "other.example"
ALICE, BOB = "did:plc:alice", "did:plc:bob"


@pytest.fixture(scope="module")
def valkey_url(server):
    return server.url


@pytest.fixture
async def switch(store):
    shared = connect_queue(SecretStr(store.url), SystemClock())
    yield Switch(shared)
    await shared.aclose()


@pytest.fixture
def prefix(store):
    return f"{store.namespace}:{{q}}:"


def shared_pace(switch, prefix, rate, clock=None):
    clock = clock or FakeClock()
    return SharedPace(switch, rate, LocalPace(rate, clock), clock, prefix=prefix)


def stored(raw, prefix, host=HOST):
    """The bucket that the script left, time in microseconds of the store."""
    tokens, at_us = raw.hget(f"{prefix}pace", host).split()
    return Bucket(float(tokens), int(at_us) / 1e6)


class TestShared:
    @pytest.mark.parametrize("seed", range(5))
    async def test_it_decides_as_the_pure_bucket_does(self, switch, raw, prefix, seed):
        draw = random.Random(seed)
        rate = Rate(per_s=draw.choice([0.5, 5, 50]), burst=draw.choice([1, 6, 20]))
        pace = shared_pace(switch, prefix, rate)
        await pace.take(HOST, ALICE)
        for _ in range(60):
            seconds, us = raw.time()
            before_us = seconds * 10**6 + us - draw.choice([0, 10_000, 300_000, 5_000_000, -40_000])
            tokens = draw.choice([0, 0.25, 0.999, 1, 3.5, 19])
            raw.hset(f"{prefix}pace", HOST, f"{tokens} {before_us}")
            wait_s = await pace.take(HOST, ALICE)
            after = stored(raw, prefix)
            # The oracle is asked at the very instant at which the script ran.
            seconds, us = raw.time()
            now = max(before_us / 1000000.0, after.at)
            assert after.at >= before_us / 1e6  # a clock that was set back gives no tokens twice
            expected, taken = Bucket(tokens, before_us / 1e6).take(rate, now)
            assert (wait_s == 0) is taken
            assert after.tokens == pytest.approx(expected.tokens, abs=1e-4)
            assert now <= seconds + us / 1e6 + 0.04
            if not taken:
                assert wait_s == pytest.approx(expected.wait_s(rate, now), abs=1e-4)

    async def test_a_host_not_known_starts_empty(self, switch, prefix):
        pace = shared_pace(switch, prefix, Rate(per_s=5, burst=6))
        assert await pace.take(HOST, ALICE) == pytest.approx(0.2, abs=0.01)

    async def test_hosts_have_a_bucket_each(self, switch, raw, prefix):
        pace = shared_pace(switch, prefix, Rate(per_s=0.001, burst=6))
        raw.hset(f"{prefix}pace", HOST, f"2 {raw.time()[0] * 10**6}")
        assert [await pace.take(HOST, ALICE) == 0 for _ in range(3)] == [True, True, False]
        raw.hset(f"{prefix}pace", OTHER, f"1 {raw.time()[0] * 10**6}")
        assert await pace.take(OTHER, ALICE) == 0

    async def test_the_fleet_shares_it(self, switch, raw, prefix):
        raw.hset(f"{prefix}pace", HOST, f"3 {raw.time()[0] * 10**6}")
        paces = [shared_pace(switch, prefix, Rate(per_s=0.001, burst=6)) for _ in range(2)]
        taken = [await paces[number % 2].take(HOST, ALICE) == 0 for number in range(6)]
        assert sum(taken) == 3

    async def test_a_paused_account_holds_up_no_other(self, switch, raw, prefix):
        pace = shared_pace(switch, prefix, Rate(per_s=1000, burst=10))
        raw.hset(f"{prefix}pace", HOST, f"9 {raw.time()[0] * 10**6}")
        await pace.pause(ALICE, 60)
        await pace.pause(ALICE, 5)  # the longest wish holds
        for other in (pace, shared_pace(switch, prefix, Rate(per_s=1000, burst=10))):
            assert await other.take(HOST, ALICE) == pytest.approx(60, abs=2)
            assert await other.take(HOST, BOB) == 0

    async def test_a_pause_that_is_over_is_forgotten(self, switch, raw, prefix):
        pace = shared_pace(switch, prefix, Rate(per_s=1000, burst=10))
        raw.hset(f"{prefix}pace", HOST, f"9 {raw.time()[0] * 10**6}")
        await pace.pause(ALICE, 60)
        raw.hset(f"{prefix}pauses", ALICE, (raw.time()[0] - 1) * 10**6)
        assert await pace.take(HOST, ALICE) == 0
        assert raw.hlen(f"{prefix}pauses") == 0

    async def test_while_the_store_is_away_each_process_keeps_its_own(self, switch, prefix):
        clock = FakeClock()
        pace = shared_pace(switch, prefix, Rate(per_s=1, burst=2), clock)
        switch.away = True
        assert await pace.take(HOST, ALICE) == 1
        clock.advance(10)
        assert [await pace.take(HOST, ALICE) == 0 for _ in range(3)] == [True, True, False]
        await pace.pause(BOB, 30)
        assert await pace.take(HOST, BOB) == 30

    async def test_a_store_that_was_away_is_not_asked_for_a_second(self, switch, raw, prefix):
        clock = FakeClock()
        pace = shared_pace(switch, prefix, Rate(per_s=1, burst=2), clock)
        switch.away = True
        await pace.take(HOST, ALICE)
        switch.away = False
        await pace.take(HOST, ALICE)
        assert switch.ran == []
        clock.advance(1.1)
        await pace.take(HOST, ALICE)
        assert switch.ran == ["pace"]


class TestLocal:
    async def test_it_starts_empty_and_keeps_the_rate(self, clock):
        pace = LocalPace(Rate(per_s=2, burst=3), clock)
        assert await pace.take(HOST, ALICE) == 0.5
        clock.advance(100)
        assert [await pace.take(HOST, ALICE) for _ in range(4)] == [0, 0, 0, 0.5]
        assert await pace.take(OTHER, ALICE) == 0.5

    async def test_a_pause_ends(self, clock):
        pace = LocalPace(Rate(per_s=2, burst=3), clock)
        await pace.take(HOST, ALICE)
        await pace.pause(ALICE, 10)
        clock.advance(9)
        assert await pace.take(HOST, ALICE) == 1
        clock.advance(2)
        assert await pace.take(HOST, ALICE) == 0


class TestWaiting:
    async def test_a_short_wait_is_waited(self):
        clock = SystemClock()
        pace = LocalPace(Rate(per_s=50, burst=1), clock)
        began_at = clock.steady()
        await wait_for_turn(pace, HOST, ALICE, clock=clock, deadline=began_at + 10)
        assert clock.steady() - began_at >= 0.02

    @pytest.mark.parametrize(("per_s", "deadline_s"), [(0.1, 60), (1, 0.5)])
    async def test_a_long_one_is_put_off(self, clock, per_s, deadline_s):
        pace = LocalPace(Rate(per_s=per_s, burst=1), clock)
        with pytest.raises(PdsBusy) as refused:
            await wait_for_turn(pace, HOST, ALICE, clock=clock, deadline=clock.steady() + deadline_s)
        assert refused.value.wait_s == pytest.approx(1 / per_s)

"""The gate that a process keeps by itself: who goes first among those who wait, and what clients spend."""

from __future__ import annotations

import asyncio

import pytest

from harness.clock import FakeClock
from proxy.errors import ShareSpent, UpstreamUnavailable
from proxy.resilience.breaker import BreakerPolicy
from proxy.resilience.gate import GatePolicy, LocalGate
from proxy.resilience.limiter import Asker, Rank, Rate

POLICY = GatePolicy(
    rate=Rate(per_s=1000, burst=1000),
    concurrency=1,
    client_per_min=4,
    breaker=BreakerPolicy(threshold=5, cooldown_s=60, probe_s=10),
)


class Crowd:
    """Askers before a gate that lets one through at a time, as each of them leaves."""

    def __init__(self, gate: LocalGate, clock: FakeClock) -> None:
        self.gone: list[str] = []
        self._gate = gate
        self._clock = clock

    async def ask(self, name: str, asker: Asker, patience_s: float = 1000) -> None:
        async with (
            self._gate.forward() as leave,
            self._gate.attempt(leave, asker, self._clock.steady() + patience_s),
        ):
            self.gone.append(name)
            await asyncio.sleep(0)


@pytest.fixture
def gate(clock):
    return LocalGate(POLICY, clock)


@pytest.fixture
def crowd(gate, clock):
    return Crowd(gate, clock)


async def test_different_clients_take_turns(crowd):
    async with asyncio.TaskGroup() as tasks:
        for rank in (Rank.DOUBTFUL, Rank.MISS):
            for name in ("greedy1", "greedy2", "greedy3", "greedy4", "one1", "two1", "one2"):
                asker = Asker(rank, name[:-1])
                tasks.create_task(crowd.ask(f"{name} {rank.name}", asker))
    misses = ["greedy1", "one1", "two1", "greedy2", "one2", "greedy3", "greedy4"]
    # The very first found nobody before it, and that was no turn among others.
    assert crowd.gone[0] == "greedy1 DOUBTFUL"
    assert crowd.gone[1:8] == [f"{name} MISS" for name in misses]
    assert crowd.gone[8:] == [
        f"{name} DOUBTFUL" for name in ("greedy2", "one1", "two1", "greedy3", "one2", "greedy4")
    ]


async def test_refreshes_come_in_their_order(crowd):
    async with asyncio.TaskGroup() as tasks:
        for name in "abcde":
            tasks.create_task(crowd.ask(name, Asker(Rank.REFRESH)))
    assert crowd.gone == list("abcde")


async def test_who_is_late_in_the_rounds_is_refused_and_a_newcomer_is_not(clock):
    slow = GatePolicy(rate=Rate(per_s=1, burst=1), concurrency=9, client_per_min=99, breaker=POLICY.breaker)
    gate = LocalGate(slow, clock)
    crowd = Crowd(gate, clock)
    waiting = [asyncio.create_task(crowd.ask(f"g{n}", Asker(Rank.MISS, "greedy"), 8)) for n in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(UpstreamUnavailable):
        await crowd.ask("g5", Asker(Rank.MISS, "greedy"), 8)
    newcomer = asyncio.create_task(crowd.ask("new", Asker(Rank.MISS, "new"), 8))
    await asyncio.sleep(0)
    assert not newcomer.done()
    for task in (*waiting, newcomer):
        task.cancel()
    await asyncio.gather(*waiting, newcomer, return_exceptions=True)
    assert crowd.gone == ["g0"]


async def test_who_waits_has_paid_and_who_gives_up_has_its_money_back(gate, crowd, clock):
    payer = Asker(Rank.MISS, "payer", pays=True)
    await crowd.ask("1", payer)
    async with gate.forward() as leave, gate.attempt(leave, Asker(Rank.MISS), clock.steady() + 1000):
        waiting = [asyncio.create_task(crowd.ask(f"{n}", payer)) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        assert gate.spent_for_s(payer) == 60
        with pytest.raises(ShareSpent) as refused:
            await crowd.ask("5", payer)
        assert (refused.value.status, refused.value.code) == (429, "RateLimitExceeded")
        assert refused.value.retry_after_s == 60
        assert gate.spent_for_s(Asker(Rank.REFRESH)) == gate.spent_for_s(Asker(Rank.MISS, "payer")) == 0
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert gate.spent_for_s(payer) == 0
    await asyncio.gather(*waiting[1:])
    assert crowd.gone == ["1", "3", "4"]

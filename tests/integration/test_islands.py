"""Accounts are islands: one that fails, or whose server says nothing at all, holds up no other."""

from __future__ import annotations

import asyncio

import pytest

from harness.newsroom import Newsroom
from harness.upstream import Response, xrpc_error
from harness.waiting import until
from proxy.bluesky import wire
from proxy.syndication import records

COOLDOWN_S = 900
BOTH = {"blog": ["main"], "news": ["side"]}


@pytest.fixture
async def room(store, tmp_path):
    async with Newsroom(store.url, store.namespace, tmp_path).open() as room:
        yield room
        assert room.stored.faults() == []


class Trouble:
    """What alice's PDS does to writes: 503, or nothing until it is released."""

    def __init__(self, room):
        self._answer, room.alices.answer = room.alices.answer, self.answer
        self.mended = False
        self.writes = 0

    def answer(self, call):
        if call.name != "putRecord":
            return self._answer(call)
        self.writes += 1
        return self._answer(call) if self.mended else xrpc_error(503, "NotAvailable")


async def other_posts(room, host, count, start=0):
    """Posts of the other account, to their end."""
    jobs = [(await host.send(host.post(start + n), site="news")).json() for n in range(count)]
    for job in jobs:
        await host.until_shown(job, "side", site="news", status="completed")


async def test_a_server_that_says_nothing_takes_nothing_from_others(room, monkeypatch):
    """No answer at all comes to account A, whatever B does: so B waits for nothing of it."""
    for module in (wire, records):
        monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 3600)
    async with room.host(sites=BOTH, WORKER_CONCURRENCY=2, LEASE_S=3600) as host, host.working():
        await host.until_shown((await host.send(host.post("first"))).json(), status="completed")
        held, released = [], []
        answer = room.alices.answer

        def silent(call):
            if released:
                return answer(call)
            held.append(call)
            return Response(hang=True)

        room.alices.answer = silent
        stuck = [(await host.send(host.post(number))).json() for number in range(20)]
        await until(lambda: held)
        await other_posts(room, host, 50)
        assert len(held) == 1, "one of A's posts is under way, as before"
        released.append(True)
        for writer in list(room.alices._connections):
            writer.transport.abort()
        for job in stuck:
            await host.until_shown(job, status="completed")
    assert len(room.alices.commits) == 21


async def test_its_breaker_parks_what_waits_and_one_probe_sets_it_free(room):
    trouble = Trouble(room)
    settings = {"ACCOUNT_BREAKER_COOLDOWN": COOLDOWN_S, "ACCOUNT_BREAKER_THRESHOLD": 3}
    async with (
        room.host(sites=BOTH, **settings) as host,
        room.host(sites=BOTH, **settings) as second,
        host.working(2),
        second.working(2),
    ):
        jobs = [(await host.send(host.post(number))).json() for number in range(20)]

        async def parked(job):
            shown = await host.until_shown(job, waiting_for="breaker")
            assert shown["next_attempt_at"] is not None
            assert shown["status"] in ("pending", "retrying")

        await asyncio.gather(*map(parked, jobs))
        writes = trouble.writes
        assert writes == 3
        await other_posts(room, host, 30)
        assert trouble.writes == writes, "nobody asks while the breaker is open"
        # The first probe fails, and is the only one.
        room.stored.let_time_pass(COOLDOWN_S + 1)
        await until(lambda: trouble.writes > writes)
        await asyncio.gather(*map(parked, jobs))
        await other_posts(room, host, 10, start=100)
        assert trouble.writes == writes + 1
        # The second one gets no answer: all workers are idle, and none joins it.
        trouble.mended = True
        probing = asyncio.Event()
        answer = room.alices.answer

        def lost(call):
            response = answer(call)
            if call.name == "putRecord" and not probing.is_set():
                probing.set()
                response.hang = True
            return response

        room.alices.answer = lost
        room.stored.let_time_pass(COOLDOWN_S + 1)
        await probing.wait()
        await other_posts(room, host, 30, start=200)
        assert trouble.writes == writes + 2
        for writer in list(room.alices._connections):
            writer.transport.abort()  # though it had been written, as a look shows at once
        for job in jobs:
            await host.until_shown(job, status="completed")
    assert len(room.alices.commits) == len({rkey for _, rkey, _ in room.alices.commits}) == 20
    assert room.logins == 2

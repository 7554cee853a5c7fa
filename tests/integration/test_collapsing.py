"""Who asks the same question at the same time causes one request upstream, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time

import pytest

from harness.proxy import feed
from harness.upstream import Response, xrpc_error
from harness.waiting import until


async def test_a_hundred_clients_on_a_cold_key_cause_one_request(start, upstream):
    upstream.delay_s = 0.1
    async with start() as proxy:
        answers = await proxy.together(100, feed())
    assert upstream.count == 1
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {answers[0].content}
    collapsed = [answer for answer in answers if "; collapsed" in answer.headers["cache-status"]]
    assert len(collapsed) == 99


@pytest.mark.parametrize(
    ("answer", "attempts"),
    [
        (xrpc_error(500, "InternalServerError", delay_s=0.05), 1),
        (Response(status=500, body=b"<html>", delay_s=0.05), 1),
        (Response(close=True, delay_s=0.05), 3),
        (Response(body=b'{"feed":[]}', cut_at=5, delay_s=0.05), 3),
        (xrpc_error(503, "NotNow", delay_s=0.05), 3),
    ],
    ids=["500 of the AppView", "500 of something else", "closes", "cut off", "503"],
)
async def test_trouble_costs_the_attempts_of_one_flight(start, upstream, answer, attempts):
    upstream.answer = lambda _: answer
    async with start() as proxy:
        first = await proxy.together(100, feed())
        assert upstream.count == attempts
        again = await proxy.together(100, feed())
    assert upstream.count == attempts, "a failing key is not asked again"
    for failed in first + again:
        assert failed.status_code in (502, 503)
        assert failed.json()["error"] in ("UpstreamFailure", "UpstreamUnavailable")
        assert failed.headers["cache-control"] == "no-store"
    assert all(int(failed.headers["retry-after"]) <= 5 for failed in again)


async def test_a_failing_key_is_asked_again_after_its_time(start, upstream, clock):
    upstream.answer = lambda _: xrpc_error(500, "InternalServerError")
    async with start(clock=clock) as proxy:
        await proxy.get(feed())
        waits = []
        for _ in range(6):
            asked, waited = upstream.count, 0
            while upstream.count == asked:
                await proxy.pass_time(1)
                waited += 1
                assert (await proxy.get(feed())).status_code == 502
            waits.append(waited)
    assert waits == [5, 10, 20, 40, 60, 60]


async def test_the_first_client_leaves_and_the_others_are_answered(start, upstream):
    upstream.delay_s = 0.1
    async with start() as proxy:
        first = asyncio.create_task(proxy.get(feed()))
        await until(lambda: upstream.count)
        others = [asyncio.create_task(proxy.get(feed())) for _ in range(99)]
        await asyncio.sleep(0)
        first.cancel()
        answers = await asyncio.gather(*others)
    assert first.cancelled()
    assert upstream.count == 1
    assert {answer.status_code for answer in answers} == {200}


async def test_everyone_leaves_and_the_answer_is_kept(start, upstream, store):
    upstream.delay_s = 0.1
    async with start() as proxy:
        clients = [asyncio.create_task(proxy.get(feed())) for _ in range(10)]
        await until(lambda: upstream.count)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        await store.wait_for_keys(1)
        answer = await proxy.get(feed())
    assert upstream.count == 1
    assert answer.headers["cache-status"].startswith("feedproxy; hit")


async def test_nobody_waits_for_a_refresh_and_refreshes_are_few(start, upstream):
    """TTL 1 s, upstream 300 ms, 50 clients for 5 s, or longer where so many use up the machine."""
    upstream.delay_s = 0.3
    async with start(CACHE_TTL=1) as proxy:
        await proxy.get(feed())
        served: list[str] = []
        began_at = time.monotonic()

        def over() -> bool:
            passed_s = time.monotonic() - began_at
            return passed_s >= 60 or (passed_s >= 5 and upstream.count >= 4)

        async def client() -> None:
            while not over():
                answer = await proxy.get(feed())
                served.append(answer.headers["cache-status"])
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as clients:
            for _ in range(50):
                clients.create_task(client())
    assert len(served) > 500
    assert all(status.startswith("feedproxy; hit") for status in served), "somebody waited for a refresh"
    asked_at = [request.at for request in upstream.requests]
    assert len(asked_at) >= 4, "nothing was refreshed"
    for start_at in asked_at:
        assert sum(start_at <= at < start_at + 1 for at in asked_at) <= 2


async def test_a_thousand_keys_each_get_one_request(start, upstream):
    upstream.delay_s = 0.01
    async with start(UPSTREAM_TIMEOUT=60) as proxy:
        targets = [feed(f"a{number}.test") for number in range(300)] * 3
        answers = await asyncio.gather(*(proxy.get(target) for target in targets))
    assert upstream.count == 300
    for target, answer in zip(targets, answers, strict=True):
        assert answer.json()["target"] == target, "an answer went to another question"

"""Processes around one store ask the upstream once, whoever dies, whatever is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter

import httpx
import pytest
import redis

from harness.fleet import everywhere, fleet
from harness.proxy import feed
from harness.upstream import Response, json_response, xrpc_error
from harness.valkey import StoreOfTest, valkey_server
from harness.waiting import until
from integration.processes import ServeProcess


def collapsed(answers):
    return [answer for answer in answers if "; collapsed" in answer.headers["cache-status"]]


async def test_one_cold_key_asked_everywhere_costs_one_request(upstream, store):
    upstream.delay_s = 0.1
    async with fleet(4, upstream.url, store) as proxies:
        answers = await everywhere(proxies, 25, feed())
        again = await everywhere(proxies, 1, feed())
    assert upstream.count == 1
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(collapsed(answers)) == 99
    assert all(answer.headers["cache-status"].startswith("feedproxy; hit; ttl=") for answer in again)


async def test_many_keys_at_once_cost_one_request_each(upstream, store):
    upstream.delay_s = 0.05
    targets = [feed(f"a{number}.test") for number in range(20)]
    async with fleet(3, upstream.url, store) as proxies:
        answers = await everywhere(proxies, 2, *targets)
    assert Counter(request.target for request in upstream.requests) == dict.fromkeys(targets, 1)
    for answer, target in zip(answers, targets * 6, strict=True):
        assert answer.json()["target"] == target


@pytest.mark.parametrize(
    ("trouble", "attempts", "status"),
    [
        (xrpc_error(500, "InternalServerError", delay_s=0.1), 1, 502),
        (xrpc_error(503, "NotNow", delay_s=0.1), 2, 503),
        (Response(close=True, delay_s=0.1), 2, 502),
    ],
    ids=["500", "503", "closes"],
)
async def test_the_leaders_failure_is_everyones(upstream, store, trouble, attempts, status):
    upstream.answer = lambda _: trouble
    async with fleet(4, upstream.url, store, RETRY_MAX=2) as proxies:
        answers = await everywhere(proxies, 5, feed())
        assert upstream.count == attempts
        assert {answer.status_code for answer in answers} == {status}
        for answer in await everywhere(proxies, 5, feed()):
            assert answer.status_code == status
            assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert upstream.count == attempts, "a key that fails for one was asked for by another"


async def test_failures_in_a_row_are_counted_by_the_fleet(upstream, store, clock):
    upstream.answer = lambda _: xrpc_error(500, "InternalServerError")
    async with fleet(2, upstream.url, store, clock=clock) as proxies:
        waits = []
        for turn in range(5):
            await proxies[turn % 2].get(feed())
            assert upstream.count == turn + 1
            waited = 0
            while (await proxies[(turn + 1) % 2].get(feed())).headers["retry-after"] != "1":
                await proxies[0].pass_time(1)
                waited += 1
            await proxies[0].pass_time(1)
            waits.append(waited + 1)
    assert waits == [5, 10, 20, 40, 60]


async def test_answers_that_must_not_be_shared_are_asked_for_by_each(upstream, store):
    running = peak = 0

    def private(request):
        nonlocal running, peak
        number = upstream.count
        running += 1
        peak = max(peak, running)
        asyncio.get_running_loop().call_later(0.1, leave)
        return json_response({"n": number}, headers={"Cache-Control": "no-store"}, delay_s=0.1)

    def leave():
        nonlocal running
        running -= 1

    upstream.answer = private
    async with fleet(3, upstream.url, store, UPSTREAM_CONCURRENCY=48) as proxies:
        answers = await everywhere(proxies, 4, feed())
        assert upstream.count == 12
        assert len({answer.content for answer in answers}) == 12, "an answer was shared"
        assert peak >= 6, "they went one after the other"
        peak = 0
        await everywhere(proxies, 2, feed())
        assert upstream.count == 18
        assert peak == 6, "the second burst queued behind a leader"


async def test_keys_that_turn_stale_everywhere_are_refreshed_once_each(upstream, store, clock):
    targets = [feed(f"a{number}.test") for number in range(30)]
    async with fleet(3, upstream.url, store, clock=clock, CACHE_TTL=100) as proxies:
        await everywhere(proxies[:1], 1, *targets)
        await store.wait_for_keys(len(targets))
        await everywhere(proxies[1:], 1, *targets)
        assert upstream.count == len(targets)
        await proxies[0].pass_time(150)
        upstream.requests.clear()
        upstream.delay_s = 0.1
        upstream.version = 2
        for _ in range(3):
            for answer in await everywhere(proxies, 1, *targets):
                assert answer.headers["cache-status"].startswith("feedproxy; hit")
        await proxies[0].landed()
        for answer in await everywhere(proxies, 1, *targets):
            assert answer.json()["version"] == 2
    assert Counter(request.target for request in upstream.requests) == dict.fromkeys(targets, 1)


async def test_a_leader_that_lost_its_lease_answers_its_own_and_overwrites_nothing(upstream, store):
    async with fleet(2, upstream.url, store) as proxies:
        first = asyncio.create_task(proxies[0].get(feed()))
        upstream.delay_s = 1.0
        await until(lambda: upstream.count)
        upstream.version, upstream.delay_s = 2, 0.0

        async def taken_over():
            store.let_time_pass(5)  # the lease has run out, until it is renewed
            second = await proxies[1].get(feed())
            return second.json()["version"] == 2 and upstream.count == 2

        assert await until(taken_over)
        assert (await first).json()["version"] == 1
        await proxies[0].landed()
        async with fleet(1, upstream.url, store) as [other]:
            assert (await other.get(feed())).json()["version"] == 2
    assert upstream.count == 2


async def test_followers_find_the_answer_though_the_news_is_lost(upstream):
    upstream.delay_s = 0.3
    with valkey_server() as url:
        store = StoreOfTest(url, "lost")
        with contextlib.closing(redis.Redis.from_url(url)) as raw:
            async with fleet(2, upstream.url, store) as proxies:
                asking = asyncio.create_task(everywhere(proxies, 5, feed()))
                await until(lambda: upstream.count)

                async def deafen():
                    while not asking.done():
                        raw.client_kill_filter(_type="pubsub")
                        await asyncio.sleep(0.02)  # how often the connections are cut

                await deafen()
                answers = await asking
        store.close()
    assert {answer.status_code for answer in answers} == {200}
    assert upstream.count == 1


async def test_what_another_version_stored_is_replaced(upstream, store):
    async with fleet(1, upstream.url, store) as [proxy]:
        await proxy.get(feed())
        await store.wait_for_keys(1)
    store.set_field("format", b"99")
    async with fleet(2, upstream.url, store) as proxies:
        await everywhere(proxies, 3, feed())
        await proxies[0].landed()
    assert upstream.count == 2
    assert store.values()[0][b"format"] != b"99"


async def _ask_all(base_url, count):
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=30) as client:
        return await asyncio.gather(*(client.get(feed()) for _ in range(count)))


async def test_two_hosts_ask_once(tmp_path, upstream):
    upstream.delay_s = 0.1
    with (
        valkey_server() as url,
        ServeProcess(tmp_path / "one", REDIS_URL=url, UPSTREAM=upstream.url, WORKERS=2) as one,
        ServeProcess(tmp_path / "two", REDIS_URL=url, UPSTREAM=upstream.url, WORKERS=2) as two,
    ):
        for host in (one, two):
            await asyncio.to_thread(host.wait_ready)
        answers = await asyncio.gather(*(_ask_all(host.base_url, 50) for host in (one, two)))
    assert upstream.count == 1
    assert {answer.status_code for host in answers for answer in host} == {200}


async def test_the_leading_process_is_killed_in_mid_flight(tmp_path, upstream):
    with (
        valkey_server() as url,
        ServeProcess(tmp_path / "leader", REDIS_URL=url, UPSTREAM=upstream.url) as leader,
    ):
        await asyncio.to_thread(leader.wait_ready)
        upstream.answer = lambda request: (
            Response(hang=True) if upstream.count == 1 else upstream.feed(request)
        )
        doomed = asyncio.create_task(_ask_all(leader.base_url, 1))
        await until(lambda: upstream.count)
        async with fleet(3, upstream.url, StoreOfTest(url, "feedproxy")) as followers:
            asking = asyncio.create_task(everywhere(followers, 20, feed()))
            await until(
                lambda: sum(task.get_name().startswith("flight ") for task in asyncio.all_tasks()) == 3
            )
            [pid] = leader.web_pids()
            os.kill(pid, signal.SIGKILL)
            killed_at = time.monotonic()
            answers = await asking
            took_s = time.monotonic() - killed_at
        with contextlib.suppress(httpx.HTTPError):
            await doomed
        await upstream.stop()
    assert {answer.status_code for answer in answers} == {200}
    assert upstream.count == 2
    assert took_s < 10, "it took a time-out to notice"

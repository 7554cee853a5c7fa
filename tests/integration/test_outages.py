"""Upstream gone, store gone, process restarted, clocks set: what was known is served, and told truly."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest

from harness.clock import FakeClock
from harness.proxy import feed, running_proxy
from harness.upstream import Upstream, xrpc_error
from harness.valkey import StoreOfTest, valkey_server
from harness.waiting import until


def ttl(answer):
    return int(answer.headers["cache-status"].partition("ttl=")[2].partition(";")[0])


async def test_upstream_killed_and_proxy_restarted(upstream, store):
    """Every feed that was cached is still served; one never seen is an XRPC error within the deadline."""
    known = [feed(f"a{number}.test") for number in range(20)]
    async with running_proxy(upstream.url, store) as proxy:
        before = [await proxy.get(target) for target in known]
        await store.wait_for_keys(len(known))
    await upstream.stop()
    store.let_time_pass(3 * 86_400)
    async with running_proxy(upstream.url, store) as proxy:
        for target, first in zip(known, before, strict=True):
            for _ in range(2):
                answer = await proxy.get(target)
                assert answer.status_code == 200
                assert answer.content == first.content
                assert answer.headers["etag"] == first.headers["etag"]
                assert 3 * 86_400 <= int(answer.headers["age"]) < 3 * 86_400 + 60
                assert answer.headers["feed-updated"] == "updated 3 days ago"
                assert "; detail=stale-if-error" in answer.headers["cache-status"]
                assert -3 * 86_400 < ttl(answer) < -2 * 86_400
                updated_at = datetime.fromisoformat(answer.headers["feed-updated-at"])
                assert abs((datetime.now(UTC) - updated_at).total_seconds() - 3 * 86_400) < 60
        unknown = await proxy.get(feed("never.test"))
    assert unknown.status_code in (502, 503, 504)
    assert set(unknown.json()) == {"error", "message"}


async def test_a_restart_asks_nothing_that_is_fresh(upstream, store):
    async with running_proxy(upstream.url, store) as proxy:
        await proxy.get(feed())
        await store.wait_for_keys(1)
    async with running_proxy(upstream.url, store) as proxy:
        answers = await proxy.together(50, feed())
    assert upstream.count == 1
    assert all(answer.headers["cache-status"].startswith("feedproxy; hit; ttl=") for answer in answers)


async def test_a_sibling_that_has_refreshed_saves_the_request(upstream, store):
    clock = FakeClock()
    async with (
        running_proxy(upstream.url, store, clock=clock, CACHE_TTL=100) as one,
        running_proxy(upstream.url, store, clock=clock, CACHE_TTL=100) as other,
    ):
        await one.get(feed())
        await store.wait_for_keys(1)
        await other.get(feed())
        await one.pass_time(150)
        upstream.version = 2
        await one.get(feed())
        await one.landed()
        assert upstream.count == 2
        assert (await other.get(feed())).json()["version"] == 1
        await other.landed()
        assert (await other.get(feed())).json()["version"] == 2
    assert upstream.count == 2


@pytest.mark.parametrize("step_s", [-86_400, -3600, 3600, 86_400])
async def test_clocks_are_set_over_a_restart(upstream, store, step_s):
    began_at = time.monotonic()
    async with running_proxy(upstream.url, store, CACHE_TTL=600) as proxy:
        await proxy.get(feed())
        await store.wait_for_keys(1)
    store.let_time_pass(step_s)
    async with running_proxy(upstream.url, store, CACHE_TTL=600) as proxy:
        upstream.version = 2
        first = await proxy.get(feed())
        assert first.status_code == 200
        passed_s = time.monotonic() - began_at
        assert max(0, step_s) <= int(first.headers["age"]) <= max(0, step_s) + passed_s + 1
        await proxy.landed()
        second = await proxy.get(feed())
    assert second.json()["version"] == 2, "an answer of unknown age was not refreshed"
    assert upstream.count == 2
    assert int(second.headers["age"]) <= 5
    assert 0 < ttl(second) <= 660


@pytest.mark.parametrize("step_s", [-86_400, -3600, 3600, 86_400])
async def test_clocks_are_set_under_load(start, upstream, store, clock, step_s):
    async with start(clock=clock, CACHE_TTL=100) as proxy:
        await proxy.get(feed())
        await store.wait_for_keys(1)
        stop = asyncio.Event()
        ages = []

        async def client():
            while not stop.is_set():
                await asyncio.sleep(0)  # a hit never waits, so it would never let the others run
                answer = await proxy.get(feed())
                ages.append(int(answer.headers["age"]))
                assert answer.status_code == 200
                assert abs(ttl(answer)) <= 110

        clients = [asyncio.create_task(client()) for _ in range(10)]
        await asyncio.sleep(0)
        clock.step(step_s)
        store_keys = proxy.store.keys()
        proxy.store.let_time_pass(step_s)
        await until(lambda: len(ages) >= 200)
        await proxy.pass_time(120)
        await until(lambda: upstream.count >= 2)
        stop.set()
        await asyncio.gather(*clients)
        assert store_keys
    assert all(0 <= age <= 125 for age in ages)
    assert upstream.count == 2, "the clock on the wall decided about freshness"


async def test_without_the_store_feeds_are_served_from_memory(upstream, store):
    class Nowhere:
        url = "unix:///nowhere/valkey.sock"
        namespace = store.namespace

        @staticmethod
        def keys():
            return []

    async with running_proxy(upstream.url, Nowhere) as proxy:
        answers = await proxy.together(20, feed())
        assert {answer.status_code for answer in answers} == {200}
        assert upstream.count == 1
        assert (await proxy.get(feed())).headers["cache-status"].startswith("feedproxy; hit")
        for number in range(5):
            assert (await proxy.get(feed(f"a{number}.test"))).status_code == 200
        health = (await proxy.get("/health")).json()
        assert health["status"] == "warn"
        assert (await proxy.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", b"2"),
        ("format", b"x"),
        ("meta", b"{"),
        ("meta", b"[]"),
        ("meta", b'{"key":"another"}'),
        ("arrived_at", b"yesterday"),
    ],
)
async def test_what_cannot_be_understood_in_the_store_is_a_miss(upstream, store, field, value):
    async with running_proxy(upstream.url, store) as proxy:
        await proxy.get(feed())
        await store.wait_for_keys(1)
    store.set_field(field, value)
    async with running_proxy(upstream.url, store) as proxy:
        answer = await proxy.get(feed())
    assert answer.status_code == 200
    assert upstream.count == 2


async def test_the_store_forgets_what_is_of_no_use(start, upstream, store):
    upstream.answer = lambda request: (
        xrpc_error(400, "InvalidRequest", "Profile not found")
        if "nobody" in request.target
        else upstream.feed(request)
    )
    async with start(NEGATIVE_TTL=60, STALE_IF_ERROR=1000, STALE_WHILE_REVALIDATE=10) as proxy:
        await proxy.get(feed("nobody.test"))
        await store.wait_for_keys(1)
        [negative] = store.lifetimes()
        assert 50 < negative <= 67
        await proxy.get(feed())
        await store.wait_for_keys(2)
        assert 1500 < max(store.lifetimes()) <= 1661


async def test_a_stepped_clock_does_not_make_an_answer_younger(upstream, store):
    async with running_proxy(upstream.url, store, CACHE_TTL=100) as proxy:
        proxy.store.let_time_pass(0)
        await proxy.get(feed())
        await store.wait_for_keys(1)
        store.let_time_pass(150)
    async with running_proxy(upstream.url, store, CACHE_TTL=100) as proxy:
        upstream.delay_s = 0.2
        assert int((await proxy.get(feed())).headers["age"]) >= 150
        # While the refresh is under way, the store's clock is set back.
        store.let_time_pass(-140)
        await proxy.landed()
        assert upstream.count == 2, "the same answer was taken for a newer one"


async def test_while_the_store_loads_its_copies_are_waited_for(upstream, tmp_path):
    """Upstream dead, everything restarted, and a store that loads until all have asked for its copies."""
    targets = [feed(f"a{number}.test") for number in range(50)]
    with valkey_server(directory=tmp_path) as url:
        own = StoreOfTest(url, "loading")
        async with running_proxy(upstream.url, own) as proxy:
            await asyncio.gather(*map(proxy.get, targets))
            await own.wait_for_keys(50)
        own.grow_by(1000)
        own.save()
    await upstream.stop()
    slowly = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    with valkey_server(*slowly, directory=tmp_path) as url:
        own = StoreOfTest(url, "loading")
        async with running_proxy(upstream.url, own) as proxy:

            async def both_away():
                checks = (await proxy.get("/health")).json()["checks"]
                told = {part: checks[part][0] for part in ("store", "upstream")}
                return "loading" in told["store"].get("output", "") and told["upstream"]["status"] == "warn"

            asked = asyncio.gather(*map(proxy.get, targets))
            await until(both_away)
            assert not asked.done(), "nobody has waited"
            own.load_at_once()
            answers = await asked
            unknown = await proxy.get(feed("never.test"))
    assert {answer.status_code for answer in answers} == {200}
    assert any("stale-if-error" in answer.headers["cache-status"] for answer in answers)
    assert unknown.status_code in (502, 503)


async def test_a_store_that_refuses_is_told_in_health(start, upstream, store):
    async with start() as proxy:
        await proxy.get(feed())
        await store.wait_for_keys(1)
        with store.full():
            assert (await proxy.get(feed("other.test"))).status_code == 200
            await proxy.landed()
            [finding] = (await proxy.get("/health")).json()["checks"]["store"]
            assert finding["status"] == "warn"
            assert "refuses" in finding["output"]
        assert (await proxy.get(feed("third.test"))).status_code == 200
        await proxy.landed()
        assert (await proxy.get("/health")).json()["status"] == "pass"


async def test_a_key_of_another_type_gives_way(start, upstream, store, clock):
    async with start(clock=clock, CACHE_TTL=10) as proxy:
        await proxy.get(feed())
        await store.wait_for_keys(1)
        store.replace_by_text()
        await proxy.landed()
        clock.advance(20)
        await proxy.get(feed())
        await proxy.landed()
        assert b"meta" in store.values()[0]


async def test_another_upstreams_answers_are_not_ours(upstream, store):
    async with running_proxy(upstream.url, store) as proxy:
        await proxy.get(feed())
        await store.wait_for_keys(1)
    async with Upstream() as other, running_proxy(other.url, store) as proxy:
        other.version = 7
        assert (await proxy.get(feed())).json()["version"] == 7

"""Whatever becomes of Redis: every client is answered, and the fleet is in step again when it is back."""

from __future__ import annotations

import itertools
import time

import pytest

from harness.faults import FAULTS, faulty_redis
from harness.fleet import everywhere, fleet
from harness.proxy import feed
from harness.upstream import xrpc_error
from harness.valkey import StoreOfTest
from harness.waiting import until
from proxy.store.link import HESITATION_S

NAMESPACE = "outage"


@pytest.fixture
async def faults():
    async with faulty_redis() as redis:
        yield redis


@pytest.fixture
def store(faults):
    """For the proxies: what this loop relays, a client that blocks it could not reach."""
    return StoreOfTest(faults.url, NAMESPACE)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_client_is_answered(upstream, faults, store, fault):
    upstream.delay_s = 0.05
    numbers = itertools.count()
    async with fleet(2, upstream.url, store, patience_s=0.08) as proxies:
        known = [feed(f"known{number}.test") for number in range(10)]
        await everywhere(proxies, 1, *known)
        faults.begin(fault)
        for _ in range(3):
            new = [feed(f"new{next(numbers)}.test") for _ in range(5)]
            answers = await everywhere(proxies, 3, *known, *new)
            assert {answer.status_code for answer in answers} == {200}
            for answer in answers:
                if "known" in answer.json()["target"]:
                    assert answer.headers["cache-status"].startswith("feedproxy; hit")
        for request in {request.target for request in upstream.requests}:
            asked = sum(each.target == request for each in upstream.requests)
            assert asked <= 2, "a process asked twice"
        faults.end(fault)

        async def in_step():
            target = feed(f"back{next(numbers)}.test")
            asked = upstream.count
            await everywhere(proxies, 2, target)
            return upstream.count == asked + 1

        assert await until(in_step)
        assert (await proxies[0].get("/health")).json()["status"] in ("pass", "warn")


async def test_the_budget_without_the_store_is_split(upstream, faults, store):
    limits = {"UPSTREAM_RPS": 8, "UPSTREAM_BURST": 4, "UPSTREAM_TIMEOUT": 2, "DEGRADED_SHARE": 0.25}
    async with fleet(2, upstream.url, store, patience_s=0.08, **limits) as proxies:
        faults.begin("killed")
        began_at = time.monotonic()
        answers = await everywhere(proxies, 1, *(feed(f"a{number}.test") for number in range(20)))
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    took_s = max(request.at for request in upstream.requests) - began_at
    assert 2 <= upstream.count <= 2 * (1 + 2 * took_s + 1)


async def test_a_purge_without_the_store_says_so(upstream, faults, store):
    token = "t" * 32
    async with fleet(1, upstream.url, store, patience_s=0.08, ADMIN_TOKEN=token) as [proxy]:
        await proxy.get(feed())
        faults.begin("killed")
        answer = await proxy.client.post(
            "/purge", json={"all": True}, headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 503
        assert answer.json()["error"] == "StoreUnavailable"
        upstream.version = 2
        assert (await proxy.get(feed())).json()["version"] == 2


@pytest.mark.parametrize(("fault", "status"), [("full", 200), ("read-only", 503)])
async def test_a_purge_with_a_store_that_refuses(upstream, faults, store, fault, status):
    token = "t" * 32
    async with fleet(2, upstream.url, store, patience_s=0.08, ADMIN_TOKEN=token) as proxies:
        await everywhere(proxies, 1, feed())
        await proxies[0].landed()
        faults.begin(fault)
        answer = await proxies[0].client.post(
            "/purge", json={"all": True}, headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == status
        assert status == 200 or "Redis refuses it" in answer.json()["message"]
        upstream.version = 2
        told = proxies if status == 200 else proxies[:1]
        await until(lambda: all(proxy.web.reading.purges.known for proxy in told))
        for proxy in told:
            assert (await proxy.get(feed())).json()["version"] == 2
        faults.end(fault)


async def test_refreshes_wait_for_a_store_that_hesitates(upstream, faults, store, clock):
    """A short absence costs no second refresh; a long one does not keep copies from being refreshed."""
    async with fleet(2, upstream.url, store, clock=clock, patience_s=0.08, CACHE_TTL=100) as proxies:
        await everywhere(proxies, 1, feed())
        await proxies[0].landed()
        clock.advance(150)
        faults.begin("stopped")
        asked = upstream.count

        async def refreshed():
            answers = await everywhere(proxies, 1, feed())
            assert {answer.status_code for answer in answers} == {200}
            return upstream.count > asked

        began_at = time.monotonic()
        assert not await refreshed()
        assert await until(refreshed)
        assert time.monotonic() - began_at >= HESITATION_S
        faults.end("stopped")


async def test_what_was_asked_without_the_store_counts_when_it_is_back(upstream, faults, store):
    limits = {"UPSTREAM_RPS": 0.01, "UPSTREAM_BURST": 8, "UPSTREAM_TIMEOUT": 2, "DEGRADED_SHARE": 0.25}
    async with fleet(2, upstream.url, store, patience_s=0.08, **limits) as proxies:
        assert (await proxies[0].get(feed())).status_code == 200
        faults.begin("stopped")
        alone = await everywhere(proxies, 1, *(feed(f"alone{number}.test") for number in range(2)))
        assert [answer.status_code for answer in alone] == [200] * 4
        faults.end("stopped")

        async def in_step():
            said = [(await proxy.get("/health")).json()["status"] for proxy in proxies]
            return said == ["pass", "pass"]

        assert await until(in_step)
        before = upstream.count
        await everywhere(proxies[:1], 1, *(feed(f"back{number}.test") for number in range(8)))
        assert upstream.count - before == 8 - 1 - 4


@pytest.mark.parametrize("fault", ["read-only", "full"])
async def test_what_a_store_has_that_refuses_is_read_again_when_it_was_away(upstream, faults, store, fault):
    async with fleet(2, upstream.url, store, patience_s=0.08) as [one, other]:
        await one.get(feed())
        await one.landed()
        faults.begin(fault)
        # Asked without the fleet's leave, which is to be told to it.
        assert (await other.get(feed("alone.test"))).status_code == 200
        faults.begin("stopped")
        assert await until(lambda: not other.web.reading.link.in_step)
        faults.end("stopped")
        assert await until(lambda: other.web.reading.link.in_step)
        asked = upstream.count
        assert (await other.get(feed())).headers["cache-status"].startswith("feedproxy; hit")
        assert upstream.count == asked
        faults.end(fault)


@pytest.mark.parametrize("fault", ["read-only", "full"])
async def test_the_breaker_is_the_processs_own_while_the_store_refuses(upstream, faults, store, fault):
    limits = {"BREAKER_THRESHOLD": 3, "RETRY_MAX": 1}
    async with fleet(1, upstream.url, store, patience_s=0.08, **limits) as [proxy]:
        await proxy.get(feed())
        await proxy.landed()
        faults.begin(fault)
        upstream.answer = lambda _: xrpc_error(503, "Down")
        asked = upstream.count
        for number in range(10):
            assert (await proxy.get(feed(f"a{number}.test"))).status_code in (502, 503)
            await proxy.landed()
        assert upstream.count - asked <= 4
        assert (await proxy.get("/health")).json()["checks"]["upstream"][0]["status"] == "warn"
        faults.end(fault)

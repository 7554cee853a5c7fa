"""What one client may cause upstream in a minute, and that nobody else feels it when that is spent."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from harness.fleet import fleet
from harness.proxy import feed
from harness.upstream import Response, json_response, xrpc_error
from harness.valkey import StoreOfTest, valkey_server
from harness.waiting import until

SHARE = 3
ONE, OTHER = "198.51.100.1", "198.51.100.2"


def strangers(count: int, name: str = "a") -> list[str]:
    """Questions that nobody has asked before."""
    return [feed(f"{name}{number}.test") for number in range(count)]


async def ask(proxy, targets, client=ONE):
    """The statuses of the answers to `targets`, one after the other."""
    return [(await proxy.get(target, x_forwarded_for=client)).status_code for target in targets]


async def spend(proxy, client=ONE, count=SHARE):
    """Have `client` spend its share."""
    assert (
        await ask(proxy, strangers(count, f"spent-{client.replace(':', '-')}-")[:count], client)
        == [200] * count
    )


def flights(proxy):
    """How many were started."""
    return proxy.process.board.totals(proxy.clock.steady()).sum("feedproxy_flights_started")


@pytest.fixture
def share(start, clock):
    """A proxy that lets each client ask for a few feeds a minute."""

    def starting(**settings):
        return start(clock=clock, **{"CLIENT_MISSES_PER_MIN": SHARE, **settings})

    return starting


async def test_beyond_its_share_a_client_is_refused_and_told_when_to_come_back(share, upstream):
    async with share() as proxy:
        assert await ask(proxy, strangers(SHARE + 3)) == [200] * SHARE + [429] * 3
        refused = await proxy.get(feed("more.test"), x_forwarded_for=ONE)
        assert refused.json()["error"] == "RateLimitExceeded"
        assert 55 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["cache-control"] == "no-store"
        assert refused.headers["cache-status"] == "feedproxy"
        assert refused.headers["access-control-allow-origin"] == "*"
        assert upstream.count == SHARE
        assert await ask(proxy, strangers(SHARE, "b"), OTHER) == [200] * SHARE
        await proxy.pass_time(61)
        assert await ask(proxy, strangers(SHARE + 1, "c")) == [200] * SHARE + [429]


async def test_no_minute_has_more_than_the_share(share, upstream):
    async with share() as proxy:
        await ask(proxy, strangers(1))
        await proxy.pass_time(40)
        assert await ask(proxy, strangers(3, "b")) == [200, 200, 429]
        await proxy.pass_time(30)
        assert await ask(proxy, strangers(2, "c")) == [200, 429]
        await proxy.pass_time(30)
        assert await ask(proxy, strangers(3, "d")) == [200, 200, 429]


async def test_many_at_once_are_counted_as_well(share, upstream):
    async with share() as proxy:
        asked = (proxy.get(target, x_forwarded_for=ONE) for target in strangers(40))
        answers = await asyncio.gather(*asked)
    assert sorted(answer.status_code for answer in answers) == [200] * SHARE + [429] * (40 - SHARE)
    assert upstream.count == SHARE


async def test_hits_and_followers_and_refreshes_cost_nothing(share, upstream):
    upstream.delay_s = 0.05
    async with share(CACHE_TTL=100) as proxy:
        answers = await asyncio.gather(*(proxy.get(feed(), x_forwarded_for=c) for c in (OTHER, *[ONE] * 20)))
        assert {answer.status_code for answer in answers} == {200}
        assert await ask(proxy, [feed()] * 20) == [200] * 20
        for _ in range(5):
            await proxy.pass_time(150)
            assert await ask(proxy, [feed()] * 3) == [200] * 3
        await proxy.landed()
        assert upstream.count == 6
        # Older than what is served at once: a refresh is waited for, and costs nothing either.
        await proxy.pass_time(100_000)
        assert await ask(proxy, [feed()]) == [200]
        assert upstream.count == 7
        assert await ask(proxy, strangers(SHARE + 1)) == [200] * SHARE + [429]
        # Who may ask no more has all of that still.
        await proxy.pass_time(50)
        assert await ask(proxy, [feed()] * 3) == [200] * 3
        both = await asyncio.gather(
            *(proxy.get(feed("new.test"), x_forwarded_for=client) for client in (OTHER, ONE, ONE))
        )
        assert [answer.status_code for answer in both] == [200] * 3


async def test_nobody_waits_while_one_is_refused_again_and_again(share, upstream):
    """Whose questions came first, many of them: the others would wait for each of these to be refused."""
    async with share() as proxy:
        await spend(proxy)
        assert await ask(proxy, [feed("refused.test")]) == [429]
        before = flights(proxy)
        askers = [ONE] * 20 + [OTHER] * 5
        answers = [proxy.get(feed("wanted.test"), x_forwarded_for=client) for client in askers]
        statuses = [answer.status_code for answer in await asyncio.gather(*answers)]
        assert statuses[20:] == [200] * 5
        assert set(statuses[:20]) <= {429, 200}
        assert flights(proxy) - before <= 2
        assert upstream.count == SHARE + 1


async def test_every_request_counts_whatever_comes_of_it(share, upstream):
    async with share(CLIENT_MISSES_PER_MIN=6, RETRY_MAX=3) as proxy:
        upstream.answer = lambda _: xrpc_error(400, "InvalidRequest", "Profile not found")
        assert await ask(proxy, strangers(2)) == [400] * 2
        assert await ask(proxy, strangers(2)) == [400] * 2, "they are remembered"
        upstream.answer = lambda _: xrpc_error(502, "Passing")
        assert await ask(proxy, strangers(1, "b")) == [502]
        assert await ask(proxy, strangers(1, "b")) == [502], "it is left alone for a while"
        assert upstream.count == 5
        upstream.answer = lambda _: xrpc_error(502, "Passing") if upstream.count == 6 else upstream.feed(_)
        # The first attempt was the last request of the share, the second one is refused.
        assert await ask(proxy, strangers(1, "c")) == [429]
        assert upstream.count == 6
        # That says nothing of the question.
        assert await ask(proxy, strangers(1, "c"), OTHER) == [200]


async def test_an_answer_that_must_not_be_shared_costs_each_asker(share, upstream):
    upstream.answer = lambda request: json_response({}, headers={"Cache-Control": "no-store"})
    async with share() as proxy:
        assert await ask(proxy, [feed()] * (SHARE + 1)) == [200] * SHARE + [429]
        assert await ask(proxy, [feed()], OTHER) == [200]


async def test_a_copy_is_served_in_place_of_a_refusal(share, upstream):
    async with share(CACHE_TTL=10) as proxy:
        assert await ask(proxy, [feed()]) == [200]
        await proxy.pass_time(20)
        upstream.answer = lambda request: json_response({}, headers={"Cache-Control": "no-store"})
        assert await ask(proxy, [feed()]) == [200]
        await proxy.landed()
        # From now on each asker asks for itself.
        assert await ask(proxy, [feed()] * (SHARE - 1)) == [200] * (SHARE - 1)
        before = upstream.count
        copy = await proxy.get(feed(), x_forwarded_for=ONE)
        assert (copy.status_code, copy.json()["target"]) == (200, feed())
        assert "detail=stale-if-error" in copy.headers["cache-status"]
        assert upstream.count == before
        assert await ask(proxy, strangers(1)) == [429]


async def test_a_page_of_ours_asks_in_the_name_of_its_reader(share):
    async with share() as proxy:
        await spend(proxy)
        assert await ask(proxy, ["/embed/new.test"]) == [429]
        assert await ask(proxy, ["/embed/new.test"], OTHER) == [200]


def status_of(cache_status: str) -> str:
    return re.sub(r"=\d+", "", cache_status)


class TestFleet:
    async def test_a_share_is_the_fleets(self, upstream, store, clock):
        async with fleet(3, upstream.url, store, clock=clock, CLIENT_MISSES_PER_MIN=6) as proxies:
            asked = (
                proxies[number % 3].get(target, x_forwarded_for=ONE)
                for number, target in enumerate(strangers(30))
            )
            statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
            assert sorted(statuses) == [200] * 6 + [429] * 24
            assert upstream.count == 6
            for proxy in proxies:
                assert await ask(proxy, strangers(1, "b")) == [429]
                assert await ask(proxy, strangers(1, "c"), OTHER) == [200]
            await proxies[0].pass_time(61)
            assert await ask(proxies[1], strangers(7, "d")) == [200] * 6 + [429]

    async def test_who_has_spent_its_share_is_served_what_others_have(self, upstream, store, clock):
        limits = {"CLIENT_MISSES_PER_MIN": SHARE}
        async with fleet(2, upstream.url, store, clock=clock, **limits) as (one, two):
            assert await ask(two, [feed()], OTHER) == [200]
            await store.wait_for_keys(1)
            await spend(one)
            assert await ask(one, strangers(1)) == [429]
            stored = await one.get(feed(), x_forwarded_for=ONE)
            assert status_of(stored.headers["cache-status"]) == "feedproxy; hit; ttl"
            # And of what others are asking for just now.
            upstream.delay_s = 0.2
            asked = asyncio.create_task(two.get(feed("new.test"), x_forwarded_for=OTHER))
            before = upstream.count
            await until(lambda: upstream.count > before)
            followed = await one.get(feed("new.test"), x_forwarded_for=ONE)
            assert (followed.status_code, (await asked).status_code) == (200, 200)
            assert "collapsed" in followed.headers["cache-status"]
            assert upstream.count == before + 1

    async def test_who_follows_a_refused_client_asks_for_itself(self, upstream, store, clock):
        """In its process and elsewhere: the leader may ask no more, which it is not known of there."""
        limits = {"CLIENT_MISSES_PER_MIN": SHARE}
        async with fleet(3, upstream.url, store, clock=clock, **limits) as (one, two, three):
            for number, name in enumerate("abcdefgh"):
                spender = f"198.51.100.{10 + number}"
                await spend(one, spender)
                asked = [(two, spender), (two, OTHER), (three, OTHER), (two, spender)]
                before, target = upstream.count, feed(f"{name}.test")
                answers = await asyncio.gather(*(p.get(target, x_forwarded_for=c) for p, c in asked))
                statuses = [answer.status_code for answer in answers]
                assert statuses[1:3] == [200, 200]
                # It is served all the same if another led before it was refused.
                assert {statuses[0], statuses[3]} <= {200, 429}
                assert upstream.count == before + 1
                await one.pass_time(61)

    async def test_who_is_refused_leads_nobody(self, upstream, store, clock):
        async with fleet(1, upstream.url, store, clock=clock, CLIENT_MISSES_PER_MIN=SHARE) as (one,):
            await spend(one)
            await ask(one, strangers(1))
            await one.landed()
            before = {key for key in store.every_key() if key.endswith(b":flight")}
            assert await ask(one, strangers(20, "b")) == [429] * 20
            await one.landed()
            assert {key for key in store.every_key() if key.endswith(b":flight")} == before

    async def test_nothing_of_clients_stays_in_the_store(self, upstream, store, clock):
        async with fleet(1, upstream.url, store, clock=clock, CLIENT_MISSES_PER_MIN=SHARE) as (one,):
            for number in range(20):
                await ask(one, strangers(1, f"a{number}-"), f"198.51.100.{number}")
            spent = [key for key in store.every_key() if b":spent:" in key]
            assert len(spent) == 20
            assert all(50 < store.lifetime_of(key) <= 60 for key in spent)


async def test_without_redis_each_process_keeps_to_its_part(upstream):
    with valkey_server() as url:
        store = StoreOfTest(url, "apart")
        limits = {"CLIENT_MISSES_PER_MIN": 8, "DEGRADED_SHARE": 0.25}
        async with fleet(2, upstream.url, store, patience_s=0.5, **limits) as proxies:
            with store.stopped():
                for proxy in proxies:
                    assert await ask(proxy, strangers(3)) == [200, 200, 429]
                    assert await ask(proxy, strangers(2, "b"), OTHER) == [200, 200]
                    # What it has is anybody's.
                    assert await ask(proxy, strangers(2)) == [200, 200]
                refused = await proxies[0].get(feed("more.test"), x_forwarded_for=ONE)
                assert refused.status_code == 429
                assert 1 <= int(refused.headers["retry-after"]) <= 60
            for proxy in proxies:
                await until(lambda proxy=proxy: proxy.web.reading.link.in_step)
            assert await ask(proxies[0], strangers(9, "c")) == [200] * 8 + [429]
        store.close()


class TestWhoIsAClient:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("2001:db8:a:b::1", "2001:db8:a:b:ffff:ffff:ffff:ffff"),
            ("198.51.100.7", "::ffff:198.51.100.7"),
            ("198.51.100.7:1234", "[::ffff:c633:6407]:80"),
            ("203.0.113.1, 198.51.100.7", "203.0.113.99, 198.51.100.7"),
            ("198.51.100.7, 127.0.0.1", "198.51.100.7"),
        ],
    )
    async def test_these_are_one(self, share, first, second):
        async with share() as proxy:
            assert await ask(proxy, strangers(SHARE), first) == [200] * SHARE
            assert await ask(proxy, strangers(1, "b"), second) == [429]

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("2001:db8:a:b::1", "2001:db8:a:c::1"),
            ("198.51.100.7", "198.51.100.8"),
            ("198.51.100.7", "::c633:6407"),  # IPv4-compatible is not IPv4-mapped
            ("198.51.100.7", "203.0.113.1"),
        ],
    )
    async def test_these_are_two(self, share, first, second):
        async with share() as proxy:
            assert await ask(proxy, strangers(SHARE), first) == [200] * SHARE
            assert await ask(proxy, strangers(1, "b"), second) == [200]

    @pytest.mark.parametrize("peer", ["203.0.113.5", "2001:db8:5::1", "::ffff:203.0.113.5", "10.1.2.3"])
    async def test_what_a_stranger_says_of_itself_changes_nothing(self, share, peer):
        async with share(CLIENT_EXEMPT="192.0.2.0/24") as proxy:
            transport = httpx.ASGITransport(proxy.web.app, client=(peer, 4711))
            async with httpx.AsyncClient(transport=transport, base_url="http://proxy.test") as stranger:
                claims = ["198.51.100.1", "127.0.0.1", "192.0.2.1", "::1", "", "unknown", "198.51.100.2"]
                statuses = [
                    (await stranger.get(target, headers={"x-forwarded-for": claim})).status_code
                    for target, claim in zip(strangers(len(claims)), claims, strict=True)
                ]
            assert statuses == [200] * SHARE + [429] * (len(claims) - SHARE)
            # Nor has it spent what is another's.
            assert await ask(proxy, strangers(SHARE, "b"), "198.51.100.1") == [200] * SHARE

    async def test_a_proxy_of_the_operators_is_believed(self, share):
        async with share(TRUSTED_PROXIES="10.0.0.0/8") as proxy:
            transport = httpx.ASGITransport(proxy.web.app, client=("10.1.2.3", 4711))
            async with httpx.AsyncClient(transport=transport, base_url="http://proxy.test") as near:
                for client in (ONE, OTHER):
                    statuses = [
                        (await near.get(target, headers={"x-forwarded-for": client})).status_code
                        for target in strangers(SHARE + 1, client.replace(".", "-"))
                    ]
                    assert statuses == [200] * SHARE + [429]

    @pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8:e::7"])
    async def test_some_are_exempt(self, share, client):
        async with share(CLIENT_EXEMPT="192.0.2.0/24, 2001:db8:e::7/128") as proxy:
            assert await ask(proxy, strangers(SHARE + 5), client) == [200] * (SHARE + 5)
            assert await ask(proxy, strangers(SHARE + 1, "b"), "2001:db8:e::8") == [200] * SHARE + [429]


async def test_a_refresh_of_a_page_that_nothing_leads_to_waits_for_the_feeds(start, upstream, clock):
    """Clients may have had pages of random cursors stored; these must not be refreshed before feeds are."""
    known, doubtful = strangers(4), [feed("a.test", cursor=f"made-up-{number}") for number in range(4)]
    async with start(clock=clock, CACHE_TTL=100, UPSTREAM_CONCURRENCY=1) as proxy:
        await ask(proxy, [*known, *doubtful])
        await proxy.pass_time(150)
        before = upstream.count
        upstream.answer = lambda request: Response(body=upstream.feed(request).body, delay_s=0.1)
        await ask(proxy, [*doubtful, *known])
        await proxy.landed()
    order = [request.target for request in upstream.requests[before:]]
    # The first of all may have found nobody before it.
    assert set(known) <= set(order[:5])
    assert set(order) == {*known, *doubtful}


async def test_a_page_that_another_process_led_to_is_a_miss_like_any_other(upstream, store):
    upstream.answer = lambda _request: json_response({"feed": [], "cursor": "the-next"})
    async with fleet(2, upstream.url, store, UPSTREAM_CONCURRENCY=1) as [one, other]:
        await one.get(feed())
        await one.landed()
        upstream.hold = asyncio.Event()
        pages = [feed(cursor=cursor) for cursor in ("the-next", "made-up")]
        asked = [asyncio.create_task(other.get(target)) for target in (feed("busy.test"), *pages)]
        assert await until(lambda: store.waiting() == {"misses": 1, "doubtful": 1})
        upstream.hold.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 3
    order = [request.params.get("cursor") for request in upstream.requests]
    assert order.index(["the-next"]) < order.index(["made-up"])

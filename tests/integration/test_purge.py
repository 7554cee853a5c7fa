"""What was purged is served by no process, however it was on its way."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
import redis

from harness.fleet import everywhere, fleet
from harness.proxy import FEED, feed, running_proxy
from harness.upstream import json_response
from harness.waiting import until

TOKEN = "an-admin-token-of-32-characters-x"
DID = "did:plc:alice00000000000000000000"
PROFILE = "/xrpc/app.bsky.actor.getProfile"


async def purge(proxy, document, token=TOKEN):
    return await proxy.client.post("/purge", json=document, headers={"authorization": f"Bearer {token}"})


def known(proxies, number):
    """Whether all processes have heard of the purge `number`."""
    return all(proxy.web.reading.purges.known >= number for proxy in proxies)


async def purged(proxies, document, by=0):
    answer = await purge(proxies[by], document)
    assert answer.status_code == 200, answer.text
    await until(lambda: known(proxies, answer.json()["number"]))


@pytest.fixture
def profiles(upstream):
    """An AppView that knows who alice is."""

    def answer(request):
        if "resolveHandle" in request.target:
            return json_response({"did": DID})
        feed_of = {"feed": [{"post": {"author": {"did": DID, "handle": "alice.test"}}}]}
        who = request.params.get("actor", [""])[0]
        document = feed_of if who in (DID, "alice.test") else {"feed": []}
        return json_response({**document, "version": upstream.version})

    upstream.answer = answer
    return upstream


@pytest.mark.parametrize(
    "document",
    [
        {"actor": "alice.test"},
        {"actor": "Alice.Test"},
        {"actor": DID},
        {"key": feed("alice.test")},
        {"key": feed(DID)},
        {"all": True},
    ],
    ids=str,
)
async def test_a_purge_holds_in_every_process(profiles, store, document):
    names = ("alice.test", DID)
    async with fleet(3, profiles.url, store, ADMIN_TOKEN=TOKEN) as proxies:
        targets = [feed(name) for name in names]
        await everywhere(proxies, 1, *targets, feed("bob.test"))
        await proxies[0].landed()
        asked = profiles.count
        profiles.version = 2
        await purged(proxies, document)
        for answer in await everywhere(proxies, 1, *targets):
            assert answer.json()["version"] == 2
        bobs = {answer.json()["version"] for answer in await everywhere(proxies, 1, feed("bob.test"))}
        assert bobs == ({2} if "all" in document else {1})
        assert sum("resolve" not in r.target for r in profiles.requests[asked:]) == 2 + ("all" in document)


async def test_a_process_that_starts_later_knows_it_too(profiles, store):
    async with running_proxy(profiles.url, store, ADMIN_TOKEN=TOKEN) as proxy:
        await proxy.get(feed("alice.test"))
        await store.wait_for_keys(1)
        await purged([proxy], {"actor": "alice.test"})
    profiles.version = 2
    async with running_proxy(profiles.url, store) as proxy:
        assert (await proxy.get(feed("alice.test"))).json()["version"] == 2


async def test_an_actor_never_seen_is_purged_by_handle_and_did(profiles, store):
    async with fleet(2, profiles.url, store, ADMIN_TOKEN=TOKEN) as proxies:
        profiles.answer = lambda request: json_response(
            {"did": DID} if "resolve" in request.target else {"version": profiles.version}
        )
        target = f"{PROFILE}?actor={DID}"
        await everywhere(proxies, 1, target)
        profiles.version = 2
        await purged(proxies, {"actor": "alice.test"})
        for answer in await everywhere(proxies, 1, target):
            assert answer.json()["version"] == 2


async def test_a_purge_while_the_answer_is_under_way(upstream, store):
    """At any stage of a fill, as the seed chooses: nobody who asks after the purge gets what was before."""
    draw = random.Random(7)
    async with fleet(3, upstream.url, store, ADMIN_TOKEN=TOKEN) as proxies:
        for number in range(60):
            target = feed(f"a{number}.test")
            upstream.delay_s = draw.choice([0.0, 0.0, 0.01, 0.03])
            before = upstream.version
            early = [asyncio.create_task(draw.choice(proxies).get(target)) for _ in range(draw.randint(1, 4))]
            for _ in range(draw.randint(0, 12)):
                await asyncio.sleep(draw.choice([0, 0, 0.002]))
            upstream.version += 1
            upstream.delay_s = 0.0  # what comes after the purge may overtake what was before
            document = draw.choice([{"actor": f"a{number}.test"}, {"key": target}, {"all": True}])
            await purged(proxies, document, by=draw.randrange(3))
            late = await everywhere(proxies, 1, target)
            await asyncio.gather(*early)
            await proxies[0].landed()
            late += await everywhere(proxies, 1, target)
            assert {answer.json()["version"] for answer in late} == {before + 1}


async def test_an_answer_that_was_overtaken_does_not_come_back(upstream, store):
    """A flight nobody joins any more lands after another one, which asked later, has been answered from."""
    async with fleet(2, upstream.url, store, ADMIN_TOKEN=TOKEN) as proxies:
        slow, quick = proxies
        upstream.hold = asyncio.Event()
        first = asyncio.create_task(slow.get(feed()))
        await until(lambda: upstream.count)
        held, upstream.hold = upstream.hold, None

        async def taken_over():
            store.let_time_pass(5)  # the lease has run out, until it is renewed
            return (await quick.get(feed())).json()["version"] == 2

        upstream.version = 2
        assert await until(taken_over)
        await purged(proxies, {"key": feed("another.test")})  # of flights before it nobody is sure
        assert (await slow.get(feed())).json()["version"] == 2
        held.set()
        await first
        await slow.landed()
        assert (await slow.get(feed())).json()["version"] == 2


async def test_a_purge_is_told_at_once(upstream, store):
    with contextlib.closing(redis.Redis.from_url(store.url)) as raw, raw.pubsub() as listener:
        listener.psubscribe(f"{store.namespace}:*news")
        assert listener.get_message(timeout=10)["type"] == "psubscribe"
        async with fleet(1, upstream.url, store, ADMIN_TOKEN=TOKEN) as [proxy]:
            number = (await purge(proxy, {"actor": "bob.test"})).json()["number"]
        while (told := listener.get_message(timeout=10)) is not None and b"purge" not in told["data"]:
            pass
    assert told is not None
    assert told["data"] == f"1 purge 0 {number} bob.test".encode()


async def test_a_purge_that_was_not_heard_is_learned(upstream, store):
    async with fleet(2, upstream.url, store, ADMIN_TOKEN=TOKEN) as [one, other]:
        await everywhere([one, other], 1, feed())
        await one.landed()
        upstream.version = 2
        other.web.reading.purges._heard = lambda _text: None
        await purged([one, other], {"actor": "alice.test"})
        assert (await other.get(feed())).json()["version"] == 2


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({}, 400),
        ([], 400),
        ({"actor": "x"}, 400),
        ({"actor": 1}, 400),
        ({"all": False}, 400),
        ({"all": True, "actor": "alice.test"}, 400),
        ({"key": "/health"}, 400),
        ({"key": FEED}, 400),
        ({"key": "/xrpc/no.such.method"}, 404),
    ],
    ids=str,
)
async def test_what_is_not_understood_purges_nothing(start, upstream, document, status):
    async with start(ADMIN_TOKEN=TOKEN) as proxy:
        await proxy.get(feed())
        refused = await purge(proxy, document)
        assert refused.status_code == status
        assert set(refused.json()) == {"error", "message"}
        assert (await proxy.get(feed())).headers["cache-status"].startswith("feedproxy; hit")


async def test_only_the_operator_may(start, clock):
    async with start() as proxy:
        assert (await purge(proxy, {"all": True})).status_code == 404
    async with start(clock=clock, ADMIN_TOKEN=TOKEN) as proxy:
        assert (await proxy.client.post("/purge", json={"all": True})).status_code == 401
        for _ in range(9):
            assert (await purge(proxy, {"all": True}, "x" * 33)).status_code == 401
        limited = await purge(proxy, {"all": True})
        assert limited.status_code == 429
        clock.advance(int(limited.headers["retry-after"]))
        assert (await purge(proxy, {"all": True})).status_code == 200
        assert (await proxy.get("/purge")).status_code in (404, 405)


async def test_the_short_way_of_hits_knows_what_was_purged(upstream, store):
    """Answers that lay ready to be sent go with the copy they were made of."""
    question = f"GET {feed()} HTTP/1.1\r\nHost: proxy.test\r\n\r\n".encode()

    def at_once(proxy):
        answer = proxy.web.reading.hits.answer(question, None, [])
        if isinstance(answer, bytes):
            return answer.partition(b"\r\n\r\n")[2]
        return None

    async with fleet(2, upstream.url, store, ADMIN_TOKEN=TOKEN) as proxies:
        await everywhere(proxies, 1, feed())
        old = [at_once(proxy) for proxy in proxies]
        upstream.version += 1
        await purged(proxies, {"key": feed()})
        assert [at_once(proxy) for proxy in proxies] == [None, None]
        await everywhere(proxies, 1, feed())
        new = [at_once(proxy) for proxy in proxies]
    assert old[0] == old[1] != new[0] == new[1]

"""A post that is published, or deleted, refreshes what is cached of its author, in every process."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from harness.fleet import everywhere, fleet
from harness.proxy import FEED, feed
from harness.redis_servers import redis_server
from harness.upstream import json_response
from harness.valkey import StoreOfTest
from harness.waiting import until
from harness.workers import nursery_in
from integration.fleet import Fleet
from integration.publishing import ALICE, delivery_of, post_of, publish
from proxy.feeds.changes import LOOKS_S, is_due
from proxy.syndication.announcing import Announcing
from proxy.syndication.attempt import Permanent, Published
from proxy.syndication.job import Action

BOTH = (feed("alice.test"), f"{FEED}?actor={ALICE}")


def appview(upstream, posts):
    """An AppView that shows the `posts()` of alice at this moment."""

    def answer(request):
        if "resolveHandle" in request.target:
            return json_response({"did": ALICE})
        author = {"did": ALICE, "handle": "alice.test"}
        shown = [{"post": {"uri": uri, "author": author}} for uri in ["at://pinned", *posts()]]
        return json_response({"feed": shown if "alice" in request.target else []})

    upstream.answer = answer


def shown(answers):
    """How many posts each of them shows."""
    return {len(answer.json()["feed"]) - 1 for answer in answers}


async def test_copies_are_refreshed_until_the_appview_must_have_the_post(upstream, store, clock):
    posts = []
    appview(upstream, lambda: posts)
    async with fleet(3, upstream.url, store, clock=clock, CACHE_TTL=6000) as proxies:

        async def asked():
            """What everybody is shown, and what it cost when all is done."""
            upstream.requests.clear()
            answers = await everywhere(proxies, 2, *BOTH, feed("bob.test"))
            await proxies[0].landed()
            assert all("hit; ttl=" in answer.headers["cache-status"] for answer in answers)
            assert all("ttl=-" not in answer.headers["cache-status"] for answer in answers)
            return shown(answers[:2]), Counter(request.target for request in upstream.requests)

        await everywhere(proxies, 1, *BOTH, feed("bob.test"))
        await proxies[0].landed()
        once_each = dict.fromkeys(BOTH, 1)
        assert await asked() == ({0}, {})
        await proxies[0].pass_time(10)

        proxies[0].web.reading.changed({ALICE, "alice.test"})
        await until(lambda: all(ALICE in proxy.web.reading.changes for proxy in proxies))
        assert await asked() == ({0}, once_each), "the copy serves while it is refreshed"
        assert await asked() == ({0}, {}), "the AppView was asked, and had nothing new yet"
        posts.append("at://first")
        await proxies[0].pass_time(LOOKS_S[1])
        assert await asked() == ({0}, once_each)
        assert await asked() == ({1}, {})
        for pause_s in (LOOKS_S[2] - LOOKS_S[1], LOOKS_S[3] - LOOKS_S[2]):
            await proxies[0].pass_time(pause_s)
            assert await asked() == ({1}, once_each)
        await proxies[0].pass_time(1000)
        assert await asked() == ({1}, {}), "they are asked for for ever"


async def test_a_process_that_heard_nothing_and_one_that_starts_later_know_it(upstream, store, clock):
    posts = []
    appview(upstream, lambda: posts)
    async with fleet(2, upstream.url, store, clock=clock) as [one, other]:
        await everywhere([one, other], 1, *BOTH)
        await one.landed()
        other.web.reading.purges._heard = lambda _text: None
        posts.append("at://first")
        await one.pass_time(5)
        one.web.reading.changed({ALICE})
        await until(lambda: ALICE in other.web.reading.changes)
        await everywhere([other], 1, *BOTH)
        await other.landed()
        assert shown(await everywhere([other], 1, *BOTH)) == {1}
        posts.append("at://second")
        await one.pass_time(5)
    async with fleet(1, upstream.url, store, clock=clock) as [later]:
        await everywhere([later], 1, *BOTH)
        await later.landed()
        assert shown(await everywhere([later], 1, *BOTH)) == {2}


async def test_a_refresh_that_fails_leaves_the_copy_and_is_tried_again(upstream, store, clock):
    posts = []
    appview(upstream, lambda: posts)
    async with fleet(1, upstream.url, store, clock=clock) as [proxy]:
        await proxy.get(BOTH[0])
        await proxy.pass_time(10)
        posts.append("at://first")
        working, upstream.answer = upstream.answer, lambda _: json_response({}, 500)
        proxy.web.reading.changed({ALICE})
        for _ in range(2):
            assert (await proxy.get(BOTH[0])).status_code == 200
            await proxy.landed()
        upstream.answer = working
        await proxy.pass_time(100)
        await proxy.get(BOTH[0])
        await proxy.landed()
        assert shown([await proxy.get(BOTH[0])]) == {1}


async def test_the_store_was_away_when_it_was_told(upstream, store):
    posts = []
    appview(upstream, lambda: posts)
    with redis_server() as server:
        own = StoreOfTest(server.url, store.namespace)
        async with fleet(2, upstream.url, own) as [one, other]:
            await everywhere([one, other], 1, *BOTH)
            await one.landed()
            server.kill()
            one.web.reading.changed({ALICE})
            assert ALICE in one.web.reading.changes, "it is known here at once"
            server.start()
            await until(lambda: ALICE in other.web.reading.changes)


@pytest.mark.parametrize(
    ("asked_at", "due"),
    [
        # The change is at 100; so much later the answer was asked for, and at these instants it is due.
        (99.0, {100.0, 101.0, 103.0, 116.0, 1000.0}),
        (100.0, {103.0, 116.0, 1000.0}),
        (103.0, {116.0, 1000.0}),
        (116.0, {1000.0}),
        (160.0, set()),
    ],
)
def test_when_to_look_again(asked_at, due):
    instants = (99.5, 100.0, 101.0, 103.0, 116.0, 1000.0)
    assert {now for now in instants if now >= asked_at and is_due(asked_at, 100.0, now)} == due


async def test_what_becomes_of_a_post_is_announced(world):
    host, told = world.host(), []
    host.publish = Announcing(host.publish, lambda: host.accounts, lambda names: told.append(set(names)))
    post = post_of()
    outcome = await publish(host, post)
    assert told == [{ALICE, "alice.test"}]
    assert (await publish(host, post)).found
    assert len(told) == 2, "who sent it may have died before it was told"
    delivery, job = delivery_of(post, action=Action.DELETE)
    delivery = replace(delivery, did=ALICE, uri=outcome.uri, cid=outcome.cid)
    assert isinstance((await host.attempt(delivery, post, job))[0], Published)
    assert told[2:] == [{ALICE, "alice.test"}]
    world.pds.accounts[ALICE].records.clear()
    refused, _ = await host.attempt(replace(delivery, after=Action.POST, action=Action.POST), post, job)
    assert isinstance(refused, Permanent)
    assert len(told) == 3


async def test_a_worker_of_another_process_refreshes_the_feeds_of_its_account(upstream):
    """End to end: `feedproxy worker` publishes, and readers of other processes see it."""
    with (
        redis_server() as server,
        tempfile.TemporaryDirectory(prefix="fp-") as directory,
        nursery_in(Path(directory)) as nursery,
    ):
        async with Fleet(nursery, server.url, UPSTREAM=upstream.url) as host:
            appview(upstream, lambda: [record["text"] for record in host.pds.posts(ALICE)])
            store = StoreOfTest(server.url, host.namespace)
            async with fleet(2, upstream.url, store, CACHE_TTL=6000) as proxies:
                assert shown(await everywhere(proxies, 1, *BOTH)) == {0}
                with host.one_more_worker():
                    await host.enqueue(post_of(1))

                    async def seen():
                        return shown(await everywhere(proxies, 1, *BOTH)) == {1}

                    await until(seen, every_s=0.05)

"""Whatever breaks at whichever point of a post's way: it is published once, and only once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.pds import LOSE_ANSWER, LOSE_REQUEST
from harness.upstream import xrpc_error
from integration.publishing import (
    ALICE,
    NO_PAUSE,
    delivery_of,
    key_of,
    linking,
    post_of,
)
from proxy.errors import StoreUnavailable
from proxy.syndication.attempt import Published, Transient
from proxy.syndication.rkey import record_uri


class TestEachBoundary:
    """Something breaks at one point of a post's way; whatever it was, the next attempts publish it once.

    On its way are a login, a lookup, a foreign record at its key, and a token that expires.
    """

    async def journey(self, world, host, number):
        """Attempts until it is published; how many there were."""
        post = post_of(number, age_s=3600)
        world.pds.put(ALICE, key_of(post), linking("https://blog.example/foreign"))
        world.pds.fail("putRecord", xrpc_error(400, "ExpiredToken"))
        delivery, job = delivery_of(post)
        attempts, outcome = 0, None
        while not isinstance(outcome, Published):
            attempts += 1
            assert attempts < 8
            try:
                outcome, lease = await host.attempt(delivery, post, job)
            except StoreUnavailable:
                continue
            delivery = lease.delivery
            assert isinstance(outcome, Published | Transient)
        assert outcome.uri == record_uri(ALICE, key_of(post, 1))
        published = [text for text in map(str, world.pds.posts(ALICE)) if post.url in text]
        assert len(published) == 1
        assert len([commit for commit in world.pds.commits if commit[1] == key_of(post, 1)]) == 1
        return attempts

    @pytest.mark.parametrize("fault", [LOSE_REQUEST, LOSE_ANSWER, xrpc_error(503, "Busy")], ids=str)
    async def test_of_http(self, world, fault):
        whole = len(world.pds.requests)
        await self.journey(world, world.host(), 0)
        whole = len(world.pds.requests) - whole
        assert whole == 8  # login, lookup, two reads, write, refresh, read, write
        for boundary in range(whole - 1):  # the write with the expired token fails anyway
            world.store.delete_all()
            calls = iter(range(10**6))
            world.pds.chaos = lambda _, at=boundary, calls=calls: fault if next(calls) == at else None
            # What the last write did is looked for at once when its answer is lost.
            attempts = 1 if fault == LOSE_ANSWER and boundary == whole - 2 else 2
            assert await self.journey(world, world.host(), 1 + boundary) == attempts

    @pytest.mark.parametrize("after", [False, True])
    async def test_of_the_store(self, world, after):
        first = world.host()
        await self.journey(world, first, 0)
        whole = first.store.calls
        assert whole >= 5
        for boundary in range(whole):
            world.store.delete_all()
            host = world.host(policy=replace(NO_PAUSE, hold_s=0.05))
            host.store.fails_at, host.store.fails_after = boundary, after
            assert await self.journey(world, host, 1 + boundary) <= 2
        assert world.logins <= 2 * (whole + 1)


async def test_a_hundred_posts_through_a_storm(world):
    """Every third answer is lost after the commit, every fifth request before it, and midway the store."""
    count = iter(range(10**6))

    def storm(call):
        if call.name != "putRecord":
            return None
        number = next(count)
        return LOSE_ANSWER if number % 3 == 0 else LOSE_REQUEST if number % 5 == 0 else None

    world.pds.chaos = storm
    posts = [post_of(number) for number in range(100)]
    hosts = [world.host() for _ in range(3)]
    waiting = {post.id: (post, *delivery_of(post)) for post in posts}
    for round_number in range(40):
        host = hosts[round_number % 3]
        for post, delivery, job in list(waiting.values()):
            outcome, lease = await host.attempt(delivery, post, job)
            if isinstance(outcome, Published):
                del waiting[post.id]
            else:
                waiting[post.id] = (post, lease.delivery, job)
        if round_number == 0:
            world.store.delete_all()
            waiting = {post.id: (post, *delivery_of(post)) for post in posts}
        elif not waiting:
            break
    assert waiting == {}
    assert len(world.pds.commits) == len(world.pds.accounts[ALICE].records) == 100
    texts = [record["text"] for record in world.pds.posts(ALICE)]
    assert len(set(texts)) == 100
    assert json.loads(json.dumps(texts)) == texts

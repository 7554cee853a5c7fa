"""A new process holds what the fleet is asked for most before anyone asks it."""

from __future__ import annotations

import pytest
import redis

from harness.fleet import fleet
from harness.proxy import feed
from harness.upstream import json_response
from harness.waiting import until
from proxy.errors import Rejected
from proxy.feeds.key import FeedKey, canonical_key, key_of_id
from proxy.feeds.popular import HALF_LIFE_MS, PERIOD_S
from proxy.feeds.service import PREFETCHED


def actors(count):
    return [f"a{number}.test" for number in range(count)]


def held(proxy, names):
    """Those whose feeds the process has in memory."""
    keys = {name: FeedKey("app.bsky.feed.getAuthorFeed", (("actor", name),)) for name in names}
    return {name for name, key in keys.items() if proxy.web.reading.service.at_once(key) is not None}


class Popularity:
    """What the fleet has counted, seen from behind."""

    def __init__(self, store):
        self._client = redis.Redis.from_url(store.url)
        self._pattern = f"{store.namespace}:*:popular"

    @property
    def key(self):
        return next(self._client.scan_iter(self._pattern, count=1000), None)

    def scores(self):
        return dict(self._client.zrevrange(self.key, 0, -1, withscores=True)) if self.key else {}

    def add(self, *members):
        self._client.zadd(self.key, dict.fromkeys(members, 99.0))

    def an_hour_passes(self):
        self._client.delete(self.key.replace(b"popular", b"halved"))


@pytest.fixture
def popularity(store):
    return Popularity(store)


async def told(proxy, popularity, count):
    """Wait until the fleet knows `count` questions."""
    await proxy.pass_time(PERIOD_S)
    await until(lambda: len(popularity.scores()) >= count)


async def test_the_most_popular_are_there_before_they_are_asked_for(upstream, store, clock, popularity):
    names = actors(8)
    async with fleet(1, upstream.url, store, clock=clock) as [old]:
        for times, name in enumerate(names):
            for _ in range(times + 1):
                await old.get(feed(name))
        await told(old, popularity, 7)  # the first was a miss and nothing else
        scores = popularity.scores()
        assert [scores[text] for text in sorted(scores)] == [float(times) for times in range(1, 8)]
        asked = upstream.count
    async with fleet(1, upstream.url, store, clock=clock) as [new]:
        assert held(new, names) == set()
        await new.web.reading.service.warm_up()
        assert held(new, names) == set(names[1:])
    assert upstream.count == asked


async def test_it_keeps_to_its_budget(upstream, store, clock, popularity):
    upstream.answer = lambda request: json_response({"feed": [], "filler": request.target * 400})
    names = actors(60)
    async with fleet(1, upstream.url, store, clock=clock) as [old]:
        for name in names * 2:
            await old.get(feed(name))
        await told(old, popularity, len(names))
    async with fleet(1, upstream.url, store, clock=clock, MEMORY_MB=1) as [new]:
        await new.web.reading.service.warm_up()
        memory = new.web.reading.caches.memory
        largest = memory.size_bytes / len(memory)
        room = 0.25 * memory.max_bytes
        assert room <= memory.size_bytes <= room + 5 * largest
    assert len(names) < PREFETCHED


async def test_what_was_popular_is_forgotten_and_what_is_no_question_passed_over(
    upstream, store, clock, popularity
):
    async with fleet(1, upstream.url, store, clock=clock) as [old]:
        for _ in range(9):
            await old.get(feed("once.test"))
        await told(old, popularity, 1)
        assert HALF_LIFE_MS >= 60_000
        [(once, _)] = popularity.scores().items()
        for expected in (4.0, 2.0):
            popularity.an_hour_passes()
            for _ in range(2):
                await old.get(feed("now.test"))
            await old.pass_time(PERIOD_S)
            await until(lambda: popularity.scores().get(once) == expected)  # noqa: B023
        popularity.add(b"2 whatever", b"1 /xrpc/no.such.method\nNone\nNone", b"\xff")
    async with fleet(1, upstream.url, store, clock=clock) as [new]:
        await new.web.reading.service.warm_up()
        assert held(new, ["once.test", "now.test"]) == {"once.test", "now.test"}


async def test_it_starts_without_the_store(upstream, store, clock):
    async with fleet(1, upstream.url, store, clock=clock, REDIS_URL="redis://127.0.0.1:1") as [new]:
        await new.web.reading.service.warm_up()
        assert (await new.get(feed())).status_code == 200


@pytest.mark.parametrize(
    ("query", "labelers"),
    [
        ("actor=alice.test", None),
        ("actor=alice.test&limit=3&cursor=a%20b", ""),
        ("actor=b.test", "did:plc:x"),
    ],
)
def test_a_key_is_known_by_its_id(query, labelers):
    key = canonical_key("app.bsky.feed.getAuthorFeed", query.encode(), labelers=labelers, language=None)
    assert key_of_id(key.id) == key
    for wrong in ("", "x", key.id + "x", key.id.replace("actor", "actors"), key.target):
        with pytest.raises(Rejected):
            key_of_id(wrong)

"""Masters that die, are replaced while they live, or give keys away, in the middle of reads and posts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import SecretStr
from redis.crc import key_slot

from harness.proxy import feed, running_proxy
from harness.queue import POLICY, QueueOfTest, queue_on, submission
from harness.redis_servers import script_of
from harness.topologies import ESCAPED, cluster, sentinel_set
from harness.waiting import until
from integration.publishing import ALICE, World, post_of
from proxy.clock import SystemClock
from proxy.errors import StoreError, StoreUnavailable
from proxy.store.connection import connect
from proxy.store.queue_store import connect_queue
from proxy.syndication.worker import Worker, WorkerPolicy

QUICK = replace(POLICY, lease_s=1.0, retry_delays_s=(0.02,) * 20, breaker_cooldown_s=0.1)
COUNT = script_of("return redis.call('INCR', KEYS[1])")


@pytest.fixture(scope="module")
def sentinels():
    with sentinel_set() as running:
        yield running


@pytest.fixture(scope="module")
def nodes():
    with cluster() as running:
        yield running


@pytest.fixture
def place():
    return SimpleNamespace(url="", namespace=f"test-{uuid.uuid4().hex[:8]}")


class Readers:
    """Clients that ask for feeds, known ones and new ones in turns, one question after the other each."""

    def __init__(self, proxy):
        self._proxy = proxy
        self._numbers = itertools.count()
        self._stop = False
        self.statuses = Counter()

    async def __aenter__(self):
        self._running = asyncio.gather(*(self._read() for _ in range(4)))
        await until(lambda: self.statuses.total() >= 30)
        return self

    async def __aexit__(self, *_):
        self._stop = True
        await self._running

    async def some_more(self):
        seen = self.statuses.total()
        await until(lambda: self.statuses.total() >= seen + 30)

    async def _read(self):
        while not self._stop:
            number = next(self._numbers)
            name = f"new{number}" if number % 2 else f"known{number % 10}"
            self.statuses[(await self._proxy.get(feed(f"{name}.test"))).status_code] += 1
            await asyncio.sleep(0.02)  # a reader's pace


class Cms:
    """Sends each post until it is taken in, and remembers all of them."""

    def __init__(self, queue):
        self._queue = queue
        self.posts = []
        self.refused = 0

    async def send(self, count):
        for _ in range(count):
            post = post_of(len(self.posts))
            self.posts.append(post)
            await self._submit(post)

    async def replay(self):
        for post in self.posts:
            await self._submit(post)

    async def _submit(self, post):
        given = submission(post.id, payload=post.canonical(), published_at_ms=post.published_at_ms)

        async def taken_in():
            try:
                return await self._queue.enqueue(given)
            except StoreError:
                self.refused += 1
                await asyncio.sleep(0.05)  # as a CMS waits before it tries again

        await until(taken_in)


@contextlib.asynccontextmanager
async def posting(world, place):
    """A CMS, and two workers on hosts of their own that publish for it."""
    there = World(world.directory, world.pds, world.other, place)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(there.close)
        workers = []
        for number in range(2):
            queue = await stack.enter_async_context(queue_on(place.url, place.namespace, QUICK))
            worker = Worker(
                queue,
                there.host().publish,
                lambda: {"main": "f"},
                SystemClock(),
                WorkerPolicy(concurrency=4, lease_s=QUICK.lease_s),
                name=f"{uuid.uuid4().hex}-{number}",
                draw=random.Random(number).random,
            )
            workers.append((worker, asyncio.create_task(worker.run())))
        intake = await stack.enter_async_context(queue_on(place.url, place.namespace, QUICK))
        try:
            yield Cms(intake)
        finally:
            for worker, _ in workers:
                worker.stop()
            await asyncio.gather(*(running for _, running in workers))


async def all_published(cms, world, stored):
    """Each post is there once, and the queue knows it and is sound."""
    count = len(cms.posts)
    await until(lambda: stored.states() == {"done": count})
    urls = [post.url for post in cms.posts]
    assert sorted(str(record["facets"]).count("http") for record in world.pds.posts(ALICE)) == [1] * count
    found = Counter(url for record in world.pds.posts(ALICE) for url in urls if f"'{url}'" in str(record))
    assert found == dict.fromkeys(urls, 1)
    assert len({key for _, key, _ in world.pds.commits}) == len(world.pds.commits) == count
    assert not stored.faults()


async def test_readers_notice_nothing_of_a_failover(sentinels, place, upstream):
    place.url = sentinels.url
    async with running_proxy(upstream.url, place) as proxy, Readers(proxy) as readers:
        gone = sentinels.kill_master()
        master = await asyncio.to_thread(sentinels.wait_for_other, gone)
        await readers.some_more()
        before = len(list(master.client.scan_iter(f"{place.namespace}:feed:*}}", count=10_000)))

        async def more_is_stored():
            await readers.some_more()
            return len(list(master.client.scan_iter(f"{place.namespace}:feed:*}}", count=10_000))) > before

        await until(more_is_stored)
        assert proxy.web.reading.store.reachable
    assert set(readers.statuses) == {200}
    await asyncio.to_thread(sentinels.heal)


async def test_posts_outlive_a_failover_that_forgets_some(sentinels, place, world):
    place.url = sentinels.url
    async with posting(world, place) as cms:
        await cms.send(15)
        await until(lambda: len(world.pds.commits) >= 5)
        old = sentinels.master
        # What comes now was told a 202, and is forgotten.
        await asyncio.to_thread(sentinels.cut_replica_off)
        await cms.send(15)
        sentinels.kill_master()
        await cms.send(15)
        master = await asyncio.to_thread(sentinels.wait_for_other, old.port)
        stored = QueueOfTest(f"redis://:{ESCAPED}@127.0.0.1:{master.port}", place.namespace)
        with contextlib.closing(stored):
            remembered = stored.hash("posts")
            assert "blog:0" in remembered
            assert not [n for n in range(15, 30) if f"blog:{n}" in remembered], "nothing was forgotten"
            await cms.replay()
            await all_published(cms, world, stored)
    await asyncio.to_thread(sentinels.heal)


async def test_a_living_master_that_was_replaced_is_left(sentinels, place):
    old = sentinels.master
    clock = SystemClock()
    store, queue_store = (
        connect(SecretStr(sentinels.url), clock),
        connect_queue(SecretStr(sentinels.url), clock),
    )
    news = store.listen("news")
    assert await anext(news) is None
    key = f"{place.namespace}:x"
    await store.run(COUNT, [key], [])
    await queue_store.run(COUNT, key, [])
    sentinels.replace_master()
    new = await asyncio.to_thread(sentinels.wait_for_other, old.port)
    # Nobody has told the old one yet: it would take what is sent to it.

    async def counted():
        with contextlib.suppress(StoreError):
            await store.run(COUNT, [f"{key}:store"], [])
            await queue_store.run(COUNT, f"{key}:queue", [])
        return all(new.client.exists(f"{key}:{which}") for which in ("store", "queue"))

    await until(counted)
    with pytest.raises(StoreUnavailable):
        await until(lambda: _silent(news))
    await store.aclose()
    await queue_store.aclose()
    await asyncio.to_thread(sentinels.heal)


async def _silent(news):
    return await anext(news) is not None


async def test_a_node_of_a_cluster_dies_under_readers_and_posts(nodes, place, upstream, world):
    place.url = nodes.url
    owner = nodes.owner(nodes.slot)
    async with (
        running_proxy(upstream.url, place) as proxy,
        Readers(proxy) as readers,
        posting(world, place) as cms,
    ):
        await cms.send(15)
        await until(lambda: len(world.pds.commits) >= 5)
        owner.kill()
        await cms.send(15)
        new = await asyncio.to_thread(nodes.wait_for_other, owner)
        await readers.some_more()
        await cms.replay()
        stored = QueueOfTest(f"redis://:{ESCAPED}@127.0.0.1:{new.port}", place.namespace)
        with contextlib.closing(stored):
            await all_published(cms, world, stored)
        held = len(nodes.keys(f"{place.namespace}:feed:*}}"))

        async def more_is_stored():
            await readers.some_more()
            return len(nodes.keys(f"{place.namespace}:feed:*}}")) > held

        await until(more_is_stored)
    assert set(readers.statuses) == {200}
    owner.start()
    await asyncio.to_thread(nodes.wait_until_whole)


async def test_a_key_that_was_moved_is_followed_at_once(nodes, place):
    clock = SystemClock()
    store, queue_store = connect(SecretStr(nodes.url), clock), connect_queue(SecretStr(nodes.url), clock)
    for number, run in enumerate((store.run, queue_store.run)):
        key = f"{{{place.namespace}{number}}}"
        keys = key if number else [key]
        assert await run(COUNT, keys, []) == 1
        slot = key_slot(key.encode())
        source = nodes.owner(slot)
        target = nodes.other_than(source)
        nodes.begin_move(slot, source, target)
        await asyncio.to_thread(nodes.move_keys, slot, source, target)
        with pytest.raises(StoreUnavailable, match="AskError"):
            await run(COUNT, keys, [])
        nodes.end_move(slot, target)
        assert await run(COUNT, keys, []) == 2
    await store.aclose()
    await queue_store.aclose()


async def test_a_slot_moves_under_the_queue(nodes, place, world):
    """While half of its keys are elsewhere it waits; then it goes on where they are."""
    place.url = nodes.url
    source = nodes.owner(nodes.slot)
    target = nodes.other_than(source)
    async with posting(world, place) as cms:
        await cms.send(15)
        await until(lambda: len(world.pds.commits) >= 5)
        nodes.begin_move(nodes.slot, source, target)
        sending = asyncio.create_task(cms.send(15))
        await until(lambda: cms.refused)
        assert not target.client.execute_command("CLUSTER", "COUNTKEYSINSLOT", nodes.slot)
        await asyncio.to_thread(nodes.move_keys, nodes.slot, source, target)
        nodes.end_move(nodes.slot, target)
        await sending
        stored = QueueOfTest(f"redis://:{ESCAPED}@127.0.0.1:{target.port}", place.namespace)
        with contextlib.closing(stored):
            await all_published(cms, world, stored)
            assert nodes.owner(nodes.slot) is target


async def test_entries_of_a_cluster_are_spread_and_the_queue_is_in_one_place(nodes, place, upstream, world):
    place.url = nodes.url
    async with running_proxy(upstream.url, place) as proxy, posting(world, place) as cms:
        await cms.send(3)
        for number in range(30):
            await proxy.get(feed(f"spread{number}.test"))
        await proxy.landed()
        await until(lambda: len(world.pds.commits) == 3)
    keys = nodes.keys(f"{place.namespace}:*")
    entries = {key for key in keys if key.startswith(f"{place.namespace}:feed:".encode())}
    assert len({key_slot(key) for key in entries}) > 20
    assert {key_slot(key) for key in keys - entries} == {nodes.slot}

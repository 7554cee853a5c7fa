"""Masters are replaced while readers ask and a CMS posts; workers are killed, answers of the PDS are lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from harness.pds import LOSE_ANSWER
from harness.proxy import feed, running_proxy
from harness.queue import POLICY, QueueOfTest, queue_on, submission
from harness.topologies import ESCAPED, sentinel_set
from harness.valkey import StoreOfTest
from harness.waiting import until
from harness.workers import nursery_in
from integration.fleet import Fleet
from integration.publishing import ALICE, post_of
from proxy.errors import StoreError

POSTS = 40
WORKERS = 2


class Chaos:
    """What goes on around a fleet until it is left."""

    def __init__(self, host, sentinels, proxy, queue):
        self._host = host
        self._sentinels = sentinels
        self._proxy = proxy
        self._queue = queue
        self._over = False
        self._numbers = itertools.count()
        self.workers = []
        self.killed = self.sent = 0
        self.statuses = Counter()

    async def __aenter__(self):
        self.workers = [self._host.worker() for _ in range(WORKERS)]
        self._group = await asyncio.TaskGroup().__aenter__()
        for work in (self._kill(), self._post(), *(self._read() for _ in range(4))):
            self._group.create_task(work)
        return self

    async def __aexit__(self, *exc):
        self._over = True
        await self._group.__aexit__(*exc)

    async def _kill(self):
        """One worker after the other, as soon as it has written something."""
        draw = random.Random(3)
        while not self._over:
            commits = len(self._host.pds.commits)
            with contextlib.suppress(TimeoutError):
                await until(
                    lambda least=commits + 3: self._over or len(self._host.pds.commits) >= least,
                    deadline_s=2,
                    every_s=0.01,
                )
            place = draw.randrange(WORKERS)
            await asyncio.to_thread(self.workers[place].kill)
            self.workers[place] = self._host.worker()
            self.killed += 1

    async def _read(self):
        while not self._over:
            number = next(self._numbers)
            name = f"new{number}" if number % 2 else f"known{number % 10}"
            self.statuses[(await self._proxy.get(feed(f"{name}.test"))).status_code] += 1
            await asyncio.sleep(0.02)  # the pace of the load

    async def _post(self):
        for number in range(POSTS):
            await self.insist(number)
            self.sent += 1
            await asyncio.sleep(0.02)  # the pace of the load

    async def insist(self, number):
        """Send a post until it is taken in."""
        post = post_of(number, age_s=3600)
        given = submission(
            post.id,
            payload=post.canonical(),
            published_at_ms=post.published_at_ms,
            url_hash=post.url_hash(),
            posts_per_hour=100_000,
        )

        async def taken_in():
            with contextlib.suppress(StoreError):
                return await self._queue.enqueue(given)
            await asyncio.sleep(0.05)  # as a CMS waits before it tries again
            return None

        await until(taken_in)


@pytest.mark.timeout(300)
async def test_a_failover_in_the_middle_of_reads_and_posts(upstream):
    with (
        sentinel_set() as sentinels,
        tempfile.TemporaryDirectory(prefix="fp-") as directory,
        nursery_in(Path(directory)) as nursery,
    ):
        first = f"redis://:{ESCAPED}@127.0.0.1:{sentinels.master.port}"
        settings = {"REDIS_URL": sentinels.url, "LEASE_S": 2, "ACCOUNT_BREAKER_COOLDOWN": 1}
        async with Fleet(nursery, first, **settings) as host:
            place = StoreOfTest(first, host.namespace)
            place.url = sentinels.url
            host.pds.fail("putRecord", *[LOSE_ANSWER] * 5)
            async with (
                running_proxy(upstream.url, place, patience_s=0.5) as proxy,
                queue_on(sentinels.url, host.namespace, POLICY) as queue,
                Chaos(host, sentinels, proxy, queue) as chaos,
            ):
                for share in (1 / 4, 1 / 2):
                    await until(
                        lambda least=share * POSTS: len(host.pds.commits) >= least,
                        deadline_s=60,
                        every_s=0.01,
                    )
                    gone = await asyncio.to_thread(sentinels.kill_master)
                    master = await asyncio.to_thread(sentinels.wait_for_other, gone)
                    await asyncio.to_thread(sentinels.heal)
                await until(lambda: chaos.sent == POSTS)
                # What a failover forgot, the CMS says again; what it has, it has once.
                for number in range(POSTS):
                    await chaos.insist(number)
                stored = QueueOfTest(f"redis://:{ESCAPED}@127.0.0.1:{master.port}", host.namespace)
                with contextlib.closing(stored):
                    await until(lambda: stored.states() == {"done": POSTS}, deadline_s=120, every_s=0.05)
                    assert not stored.faults()
            found = Counter(host.links())
            assert found == {f"https://blog.example/{number}": 1 for number in range(POSTS)}
            keys = {key for _, key, _ in host.pds.commits}
            assert len(keys) == len(host.pds.commits) == len(host.pds.posts(ALICE)) == POSTS
            assert set(chaos.statuses) == {200}
            assert chaos.statuses.total() > 100
            assert chaos.killed >= 3
            print(f"\n{chaos.statuses} answers, {chaos.killed} workers killed, 2 failovers")  # noqa: T201

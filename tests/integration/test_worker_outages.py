"""Stores that are killed under working workers, and accounts that fail beside others that do not."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections import Counter
from dataclasses import replace

import pytest

from harness.queue import POLICY, QueueOfTest, queue_on, submission
from harness.redis_servers import KINDS, redis_server
from harness.waiting import until
from proxy.clock import SystemClock
from proxy.syndication.worker import Published, Transient, Worker, WorkerPolicy

QUICK = replace(POLICY, lease_s=1.0, retry_delays_s=(0.02,) * 20, breaker_cooldown_s=0.1)
APPEND_ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")


@contextlib.asynccontextmanager
async def workers(url, namespace, publish, *accounts, count=2):
    """`count` workers with a store connection each."""
    async with contextlib.AsyncExitStack() as stack:
        running = []
        for number in range(count):
            queue = await stack.enter_async_context(queue_on(url, namespace, QUICK))
            worker = Worker(
                queue,
                publish,
                lambda: dict.fromkeys(accounts, "fp"),
                SystemClock(),
                WorkerPolicy(concurrency=4, lease_s=QUICK.lease_s),
                name=f"{uuid.uuid4().hex}-{number}",
                draw=random.Random(number).random,
            )
            running.append((worker, asyncio.create_task(worker.run())))
        try:
            yield
        finally:
            for worker, _ in running:
                worker.stop()
            await asyncio.gather(*(task for _, task in running))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_killed_again_and_again_loses_nothing(kind):
    """Each intent is of one record key, and each delivery ends."""
    intents = Counter()
    published = set()

    async def publish(delivery, post, lease):
        await lease.intend(b"{}", "cid", f"rkey-{post.id}")
        intents[delivery.account, post.id] += 1
        await asyncio.sleep(0.002)
        published.add((delivery.account, post.id))
        return Published(uri=f"at://{delivery.account}/{post.id}", cid="cid")

    with redis_server(kind, *APPEND_ALWAYS) as server:
        stored = QueueOfTest(server.url, "outage")
        async with queue_on(server.url, "outage", QUICK) as intake:
            for number in range(80):
                await intake.enqueue(submission(str(number), accounts=("a", "b")))
            async with workers(server.url, "outage", publish, "a", "b"):
                for round_number in range(1, 4):
                    await until(lambda done=round_number * 30: len(published) >= done)
                    server.kill()
                    server.start()
                await until(lambda: stored.states() == {"done": 160}, deadline_s=60)
            await until(lambda: intake.reachable)
            assert await intake.reconcile() == ("0", [])
        assert stored.faults() == []
        assert stored.redis.xlen(stored.key("bells")) == 0
        stored.redis.close()
    assert len(published) == 160
    assert max(intents.values()) <= 4, "one more for each time the store was killed at most"


async def test_an_account_that_fails_holds_up_no_other():
    """While its breaker opens, probes and opens again, the other's posts go out; then its own do."""
    mended = asyncio.Event()
    probes = Counter()

    async def publish(delivery, post, lease):
        await lease.intend(b"{}", "cid", f"rkey-{post.id}")
        if delivery.account == "bad" and not mended.is_set():
            probes[post.id] += 1
            return Transient(reason="HTTP 503", counts_for_breaker=True)
        return Published(uri="at://x", cid="cid")

    with redis_server() as server:
        stored = QueueOfTest(server.url, "islands")
        async with queue_on(server.url, "islands", QUICK) as intake:
            async with workers(server.url, "islands", publish, "good", "bad"):
                for number in range(30):
                    await intake.enqueue(submission(str(number), accounts=("good", "bad")))
                await until(lambda: stored.states()["done"] == 30)
                await until(lambda: stored.hash("account:bad").get("gate_reason") == "breaker")
                before = sum(probes.values())
                await until(lambda: sum(probes.values()) >= before + 2)
                parked = stored.states()
                assert parked["ready"] + parked["delayed"] + parked["active"] == 30
                mended.set()
                await until(lambda: stored.states() == {"done": 60})
            assert await intake.reconcile() == ("0", [])
        assert stored.faults() == []
        assert "failures" not in stored.hash("account:bad")
        stored.redis.close()


async def test_two_thousand_jobs_leave_nothing_but_what_is_kept():
    """Streams at length 0; after the sweep the memory of the start, and the tombstones."""
    with redis_server() as server:
        stored = QueueOfTest(server.url, "many")

        did, rkey = f"did:plc:{'x' * 24}", "r" * 13

        async def publish(delivery, post, lease):
            await lease.intend(b'{"text":"%s"}' % (b"x" * 300), "b" * 59, rkey, did=did, generation=0)
            return Published(uri=f"at://{did}/app.bsky.feed.post/{rkey}", cid="b" * 59)

        def posts(start):
            free = {"posts_per_hour": 100_000, "max_waiting": 10_000}
            return (submission(str(number), accounts=("a",), **free) for number in range(start, start + 100))

        async with queue_on(server.url, "many", QUICK) as queue:
            await queue.enqueue(submission("first", accounts=("a",)))
            async with workers(server.url, "many", publish, "a", count=1):
                await until(lambda: stored.states() == {"done": 1})
                empty = stored.redis.info("memory")["used_memory"]
                for start in range(0, 2000, 100):
                    await asyncio.gather(*(queue.enqueue(post) for post in posts(start)))
                await until(lambda: stored.redis.zcard(stored.key("done")) == 2001, deadline_s=60)
            assert stored.redis.xlen(stored.key("bells")) == 0
            sizes = [
                sum(stored.redis.memory_usage(stored.key(part)) for part in (name, f"d:{name[4:]}:a"))
                for name in stored.keys("job:*")[:50]
            ]
            assert max(sizes) <= 1024, sizes
            stored.let_time_pass(8 * 86400)
            while await queue.sweep():
                pass
        assert len(stored.keys("post:*")) == 2001
        assert stored.keys("d:*") == stored.keys("job:*") == stored.keys("idem:*") == []
        tombstones = sum(stored.redis.memory_usage(stored.key(name)) for name in stored.keys("post:*"))
        tombstones += stored.redis.memory_usage(stored.key("tombs"))
        left = stored.redis.info("memory")["used_memory"] - empty
        assert left <= 1.15 * tombstones + 0.05 * empty + 200_000
        stored.redis.close()

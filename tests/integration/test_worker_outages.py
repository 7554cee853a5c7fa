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
from proxy.syndication.attempt import Published, Transient
from proxy.syndication.worker import Worker, WorkerPolicy

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
        await asyncio.sleep(0.002)  # what a PDS takes, in which the store may be killed
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
                await until(lambda: stored.states() == {"done": 160})
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

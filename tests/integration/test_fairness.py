"""Ten thousand posts of one site do not hold up the first of another."""

from __future__ import annotations

import asyncio

from harness.queue import QueueOfTest, queue_on, submission


async def work_off(queue, count):
    """Finish `count` deliveries, one worker taking one at a time; the posts in their order."""
    order = []
    (leased,) = await queue.take("w1", 1)
    while leased is not None:
        order.append(leased.job.post)
        following = "w1" if len(order) < count else ""
        leased = (await queue.finish(leased, "at://x", "c", following=following)).following
    return order


async def test_with_one_worker_and_on_a_shared_account(store):
    async with queue_on(store.url, store.namespace) as queue:
        await queue.introduce("w1", dict.fromkeys(("main", "side"), "fp"))

        async def import_posts(numbers):
            unbounded = {"site": "importer", "max_waiting": 20_000, "posts_per_hour": 100_000}
            for number in numbers:
                await queue.enqueue(submission(f"import-{number}", **unbounded))

        await asyncio.gather(*(import_posts(range(part, 10_000, 64)) for part in range(64)))
        assert len(await work_off(queue, 3)) == 3
        await queue.enqueue(submission("shared", site="other"))
        await queue.enqueue(submission("own", site="third", accounts=("side",)))
        assert {"shared", "own"} <= set(await work_off(queue, 4))
        # Nor when the other goes on: the two take turns.
        for number in range(3):
            await queue.enqueue(submission(f"more-{number}", site="other"))
        order = await work_off(queue, 7)
        assert [post for post in order if post.startswith("more")] == ["more-0", "more-1", "more-2"]
    QueueOfTest(store.url, store.namespace).close()

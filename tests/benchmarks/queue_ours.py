"""The queue of this project, as its benchmark drives it, one process a command.

- `enqueue URL FIRST COUNT CLIENTS` enqueues the jobs from number FIRST on and prints {"took_s": [...]};
- `drain URL COUNT DELAY_S CONCURRENCY` prints {"per_s": ...}, from the first job's begin to the last one's;
- `hold URL LEASE_S` prints {"number": ..., "began_at": ...} for each job that begins, and never ends job 0.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
import uuid
from dataclasses import replace

import structlog
import uvloop

from proxy.clock import SystemClock
from proxy.syndication.attempt import Published
from proxy.syndication.worker import Worker, WorkerPolicy
from tests.harness.queue import POLICY, queue_on, submission

# As many as a busy installation has; the posts of one account go out one after the other.
ACCOUNTS = tuple(f"account{number}" for number in range(100))
NAMESPACE = "bench"


def post(number):
    free = {"posts_per_hour": 1_000_000, "max_waiting": 1_000_000}
    return submission(f"{number}", accounts=(ACCOUNTS[number % len(ACCOUNTS)],), **free)


async def enqueue(url, first, count, at_a_time):
    took = []
    numbers = iter(range(first, first + count))

    async def client(queue):
        for number in numbers:
            given = post(number)
            began = time.perf_counter()
            await queue.enqueue(given)
            took.append(time.perf_counter() - began)

    async with queue_on(url, NAMESPACE) as queue:
        await asyncio.gather(*(client(queue) for _ in range(at_a_time)))
    print(json.dumps({"took_s": took}), flush=True)


@contextlib.asynccontextmanager
async def working(url, publish, concurrency, lease_s):
    policy = replace(POLICY, lease_s=lease_s)
    async with queue_on(url, NAMESPACE, policy) as queue:
        worker = Worker(
            queue,
            publish,
            lambda: dict.fromkeys(ACCOUNTS, "fingerprint"),
            SystemClock(),
            WorkerPolicy(concurrency=concurrency, lease_s=lease_s),
            name=uuid.uuid4().hex,
            draw=lambda: 0.5,
        )
        running = asyncio.create_task(worker.run())
        yield
        worker.stop()
        await running


async def drain(url, count, delay_s, concurrency):
    over, instants = asyncio.Event(), []

    async def publish(_delivery, _post, _lease):
        instants.append(time.perf_counter())
        if delay_s:
            await asyncio.sleep(delay_s)
        if len(instants) == count:
            over.set()
        return Published(uri="at://did:plc:x/app.bsky.feed.post/x", cid="x")

    async with working(url, publish, concurrency, lease_s=10):
        await over.wait()
    print(json.dumps({"per_s": (count - 1) / (instants[-1] - instants[0])}), flush=True)


async def hold(url, lease_s):
    async def publish(_delivery, post, _lease):
        print(json.dumps({"number": post.id, "began_at": time.time()}), flush=True)
        if post.id == "0":
            await asyncio.Event().wait()
        return Published(uri="at://did:plc:x/app.bsky.feed.post/x", cid="x")

    async with working(url, publish, 4, lease_s):
        await asyncio.Event().wait()


if __name__ == "__main__":
    # Standard output is for what is measured. Like the peers, we say nothing of jobs that go well.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    what, url, *rest = sys.argv[1:]
    numbers = [float(word) for word in rest]
    if what == "enqueue":
        uvloop.run(enqueue(url, *map(int, numbers)))
    elif what == "drain":
        uvloop.run(drain(url, int(numbers[0]), numbers[1], int(numbers[2])))
    else:
        uvloop.run(hold(url, numbers[0]))

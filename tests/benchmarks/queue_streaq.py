"""streaq, as the benchmark of the queue drives it; runs in an environment of its own.

Commands and what they print are those of queue_ours.py.
"""

import asyncio
import json
import sys
import time

import uvloop
from streaq import Worker


def worker_of(url, **options):
    return Worker(redis_url=url, queue_name="bench", handle_signals=False, **options)


async def enqueue(url, first, count, at_a_time):
    worker = worker_of(url)

    @worker.task(name="noop", ttl=0)
    async def noop(number, payload):
        pass

    took = []
    numbers = iter(range(first, first + count))

    async def client():
        for number in numbers:
            began = time.perf_counter()
            await noop.enqueue(f"{number}", "x" * 200)
            took.append(time.perf_counter() - began)

    async with worker:
        await asyncio.gather(*(client() for _ in range(at_a_time)))
    print(json.dumps({"took_s": took}), flush=True)


async def drain(url, count, delay_s, concurrency):
    worker = worker_of(url, concurrency=concurrency)
    over, instants = asyncio.Event(), []

    @worker.task(name="noop", ttl=0)
    async def work(number, payload):
        instants.append(time.perf_counter())
        if delay_s:
            await asyncio.sleep(delay_s)
        if len(instants) == count:
            over.set()

    working = asyncio.create_task(worker.run_async())
    await over.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    print(json.dumps({"per_s": (count - 1) / (instants[-1] - instants[0])}), flush=True)


async def hold(url, lease_s, *, seconds):
    """Say when a job begins, and be busy with job 0 for that long."""
    worker = worker_of(url, concurrency=4, idle_timeout=lease_s)

    @worker.task(name="noop", ttl=0)
    async def work(number, payload):
        print(json.dumps({"number": number, "began_at": time.time()}), flush=True)
        if number == "0":
            await asyncio.sleep(seconds)

    await worker.run_async()


if __name__ == "__main__":
    what, url, *rest = sys.argv[1:]
    numbers = [float(word) for word in rest]
    if what == "enqueue":
        uvloop.run(enqueue(url, *map(int, numbers)))
    elif what == "drain":
        uvloop.run(drain(url, int(numbers[0]), numbers[1], int(numbers[2])))
    else:
        uvloop.run(hold(url, numbers[0], seconds=3600))

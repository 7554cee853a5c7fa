"""taskiq-redis, as the benchmark of the queue drives it; runs in an environment of its own.

Commands and what they print are those of queue_ours.py.
"""

import asyncio
import json
import sys
import time

import uvloop
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker


def broker_of(url, **options):
    return RedisStreamBroker(url, queue_name="bench", consumer_id="0", **options)


async def enqueue(url, first, count, at_a_time):
    broker = broker_of(url)
    task = broker.register_task(noop, task_name="noop")
    await broker.startup()
    took = []
    numbers = iter(range(first, first + count))

    async def client():
        for number in numbers:
            began = time.perf_counter()
            await task.kiq(f"{number}", "x" * 200)
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(at_a_time)))
    await broker.shutdown()
    print(json.dumps({"took_s": took}), flush=True)


async def noop(number, payload):
    pass


async def drain(url, count, delay_s, concurrency):
    broker = broker_of(url)
    over, instants = asyncio.Event(), []

    async def work(number, payload):
        instants.append(time.perf_counter())
        if delay_s:
            await asyncio.sleep(delay_s)
        if len(instants) == count:
            over.set()

    broker.register_task(work, task_name="noop")
    await run(broker, concurrency, over)
    print(json.dumps({"per_s": (count - 1) / (instants[-1] - instants[0])}), flush=True)


async def run(broker, concurrency, over):
    """What `taskiq worker` runs in each of its processes."""
    receiver = Receiver(broker, max_async_tasks=concurrency, max_prefetch=concurrency)
    await broker.startup()
    finish = asyncio.Event()
    listening = asyncio.create_task(receiver.listen(finish))
    await over.wait()
    finish.set()
    await listening
    await broker.shutdown()


async def hold(url, lease_s, *, seconds):
    """Say when a job begins, and be busy with job 0 for that long."""
    broker = broker_of(url, idle_timeout=int(lease_s * 1000))

    async def work(number, payload):
        print(json.dumps({"number": number, "began_at": time.time()}), flush=True)
        if number == "0":
            await asyncio.sleep(seconds)

    broker.register_task(work, task_name="noop")
    await run(broker, 4, asyncio.Event())


if __name__ == "__main__":
    what, url, *rest = sys.argv[1:]
    numbers = [float(word) for word in rest]
    if what == "enqueue":
        uvloop.run(enqueue(url, *map(int, numbers)))
    elif what == "drain":
        uvloop.run(drain(url, int(numbers[0]), numbers[1], int(numbers[2])))
    else:
        uvloop.run(hold(url, numbers[0], seconds=3600))

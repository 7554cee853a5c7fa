"""Crowds before a whole `serve`: one client that asks for ever new feeds, and fifty with random cursors."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import httpx

from harness.proxy import feed
from harness.waiting import until
from integration.processes import ServeProcess

GREEDY, VISITOR = "198.51.100.1", "203.0.113.1"
UPSTREAM_S = 0.1
# For so many of the others who ask for a new feed waits at most: two seconds' worth, if the machine is slow.
TURNS = 10


@contextlib.asynccontextmanager
async def serving(tmp_path, upstream, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """Two web processes before `upstream`, and a client that says itself for whom it asks."""
    upstream.delay_s = UPSTREAM_S
    given = {"UPSTREAM": upstream.url, "WORKERS": 2, "LOG_LEVEL": "info", **settings}
    with ServeProcess(tmp_path / "data", **given) as serve:
        await asyncio.to_thread(serve.wait_ready)
        limits = httpx.Limits(max_connections=500, max_keepalive_connections=500)
        async with httpx.AsyncClient(
            base_url=serve.base_url, limits=limits, timeout=30, trust_env=False
        ) as client:
            yield client


async def ask(client: httpx.AsyncClient, target: str, who: str) -> httpx.Response:
    return await client.get(target, headers={"x-forwarded-for": who})


async def in_parallel(width: int, work: Iterable) -> None:
    """Await all of `work`, `width` at a time."""
    rest = iter(work)

    async def some() -> None:
        for each in rest:
            await each

    async with asyncio.TaskGroup() as tasks:
        for _ in range(width):
            tasks.create_task(some())


async def test_one_client_asks_for_ever_new_feeds(tmp_path, upstream, crowd):
    """It has its share and no more; whoever else asks for a new feed is next."""
    statuses: Counter[int] = Counter()
    waits_s, turns = [], []
    done = asyncio.Event()

    def place_of(target: str) -> int:
        return next((n for n, request in enumerate(upstream.requests) if request.target == target), -1)

    async def greedy(client):
        async def one(number):
            answer = await ask(client, feed(f"greedy{number}.test"), GREEDY)
            statuses[answer.status_code] += 1
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1

        await in_parallel(40, (one(number) for number in range(crowd)))
        done.set()

    async def visitors(client):
        for number in itertools.count():
            if done.is_set():
                return
            target, before, began_at = feed(f"new{number}.test"), upstream.count, time.monotonic()
            answer = await ask(client, target, f"203.0.113.{number % 250}")
            waits_s.append(time.monotonic() - began_at)
            assert answer.status_code == 200
            turns.append(place_of(target) - before)

    async with serving(tmp_path, upstream) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(greedy(client))
        tasks.create_task(visitors(client))
    caused = sum("greedy" in request.target for request in upstream.requests)
    print(  # noqa: T201
        f"{sum(statuses.values())} distinct actors: {dict(statuses)}, {caused} reached the upstream; "
        f"{len(waits_s)} first looks of others: slowest {max(waits_s):.2f} s, "
        f"most turns of others before one {max(turns)}"
    )
    first_s, last_s = upstream.requests[0].at, upstream.requests[-1].at
    assert caused <= 60 * (1 + (last_s - first_s) // 60)
    # Before its share is spent it may ask for more than the budget has.
    assert statuses[200] == caused
    assert statuses[200] + statuses[503] + statuses[429] == crowd
    assert statuses[429] >= crowd / 2
    assert len(waits_s) >= 10
    assert max(turns) <= TURNS


async def test_fifty_clients_ask_for_pages_that_nothing_leads_to(tmp_path, upstream):
    """Each stays just below its limit; known feeds are refreshed all the same."""
    ttl_s, feeds, clients, per_min = 6.0, 10, 50, 60
    known = [feed(f"known{number}.test") for number in range(feeds)]
    numbers = itertools.count()
    statuses: Counter[int] = Counter()
    settings = {"CACHE_TTL": ttl_s, "CLIENT_MISSES_PER_MIN": per_min}
    async with serving(tmp_path, upstream, **settings) as client:
        for target in known:
            await until(lambda target=target: answered(client, target))
        began_at = time.monotonic()
        over_at = began_at + 3 * ttl_s

        async def browse(who):
            """At most 59 pages a minute, one after the other."""
            while time.monotonic() < over_at:
                target = feed(f"known{next(numbers) % feeds}.test", cursor=f"made-up-{next(numbers)}")
                statuses[(await ask(client, target, who)).status_code] += 1
                await asyncio.sleep(60 / (per_min - 1))

        async def read():
            """The readers of the known feeds, who never see an error."""
            while time.monotonic() < over_at:
                for target in known:
                    assert (await ask(client, target, VISITOR)).status_code == 200
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            for number in range(clients):
                tasks.create_task(browse(f"198.51.100.{number}"))
    ages_s = []
    for target in known:
        at = [request.at for request in upstream.requests if request.target == target]
        at.append(over_at)
        ages_s += [later - earlier for earlier, later in itertools.pairwise(at)]
    print(  # noqa: T201
        f"{clients} clients, {sum(statuses.values())} random cursors: {dict(statuses)}; {feeds} known feeds "
        f"refreshed {len(ages_s) - feeds} times in {3 * ttl_s:g} s, at the latest after {max(ages_s):.1f} s"
    )
    assert statuses[503], "there was no crowd"
    assert max(ages_s) <= 2 * ttl_s


async def answered(client: httpx.AsyncClient, target: str) -> bool:
    return (await ask(client, target, VISITOR)).status_code == 200

"""Origin requests for a day of widgets in a minute: `python -m tests.benchmarks.upstream`.

Readers choose among 500 feeds by Zipf's law. What the origin was asked is compared with what an ideal cache
would have asked it, given the same requests at the same instants: once when a feed that nobody has asked for
within the lifetime is asked for.
"""

from __future__ import annotations

import asyncio
import random

from tests.benchmarks.client import Answered, Connection, all_good
from tests.benchmarks.servers import asked, feedproxy, origin
from tests.benchmarks.table import options, show

FEEDS = 500
READERS = 20
PER_S = 400.0
TTL_S = 3
RUN_S = 30.0
SEED = 20_261_122


def target(feed: int) -> str:
    return f"/xrpc/app.bsky.feed.getAuthorFeed?actor=widget-{feed}.example.com"


async def read(port: int) -> list[tuple[int, Answered]]:
    """Which feed was asked for when."""
    draw = random.Random(SEED)
    weights = [1 / rank for rank in range(1, FEEDS + 1)]
    connections = [await Connection.open(port) for _ in range(READERS)]
    loop = asyncio.get_running_loop()
    start = loop.time()
    trace: list[tuple[int, Answered]] = []

    async def reader(connection: Connection, number: int) -> None:
        turn = number
        while (at := start + turn / PER_S) < start + RUN_S:
            await asyncio.sleep(max(0.0, at - loop.time()))
            feed = draw.choices(range(FEEDS), weights)[0]
            trace.append((feed, await connection.get(target(feed))))
            turn += READERS

    await asyncio.gather(*(reader(one, number) for number, one in enumerate(connections)))
    return trace


def ideal(trace: list[tuple[int, Answered]]) -> int:
    """The requests of a cache that fetches in no time and keeps everything for exactly TTL_S."""
    fetched_at: dict[int, float] = {}
    count = 0
    for feed, answer in sorted(trace, key=lambda item: item[1].asked_at):
        if answer.asked_at - fetched_at.get(feed, -TTL_S) >= TTL_S:
            fetched_at[feed] = answer.asked_at
            count += 1
    return count


def main() -> None:
    chosen = options(__doc__ or "", rounds=1)
    rows = []
    for _ in range(chosen.rounds):
        with origin() as source, feedproxy(source, CACHE_TTL=TTL_S) as server:
            trace = asyncio.run(read(server.port))
            all_good([answer for _, answer in trace])
            ours = sum(asked(source, target(feed)) for feed in range(FEEDS))
        best = ideal(trace)
        rows.append(
            {"requests": len(trace), "to the origin": ours, "ideal": best, "ratio": f"{ours / best:.3f}"}
        )
    show(f"Origin requests, {FEEDS} feeds, lifetime {TTL_S} s", rows, chosen.json)


if __name__ == "__main__":
    main()

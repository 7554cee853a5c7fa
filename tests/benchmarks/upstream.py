"""Origin requests for a day of widgets in a minute: `python -m tests.benchmarks.upstream`.

Readers choose among 500 feeds by Zipf's law. What the origin was asked is compared with what an ideal cache
would have asked it, given the same requests at the same instants: once when a feed is asked for that was not
fetched within the lifetime before.
"""

from __future__ import annotations

import random

from tests.benchmarks.client import all_good, connections, paced
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


def day() -> list[tuple[float, str]]:
    """Which feed is asked for when."""
    weights = [1 / rank for rank in range(1, FEEDS + 1)]
    count = int(PER_S * RUN_S)
    feeds = random.Random(SEED).choices(range(FEEDS), weights, k=count)
    return [(number / PER_S, target(feed)) for number, feed in enumerate(feeds)]


def ideal(questions: list[tuple[float, str]]) -> int:
    """The requests of a cache that fetches in no time and keeps everything for exactly TTL_S."""
    fetched_at: dict[str, float] = {}
    count = 0
    for asked_at, feed in questions:
        if asked_at - fetched_at.get(feed, -TTL_S) >= TTL_S:
            fetched_at[feed] = asked_at
            count += 1
    return count


def main() -> None:
    chosen = options(__doc__ or "", rounds=1)
    rows = []
    questions = day()
    best = ideal(questions)
    for _ in range(chosen.rounds):
        with origin() as source, feedproxy(source, CACHE_TTL=TTL_S) as server:
            with connections([server.port] * READERS) as pool:
                all_good(paced(pool, questions), len(questions))
            ours, _ = asked(source, {feed for _, feed in questions})
        rows.append(
            {"requests": len(questions), "to the origin": ours, "ideal": best, "ratio": f"{ours / best:.3f}"}
        )
    show(f"Origin requests, {FEEDS} feeds, lifetime {TTL_S} s", rows, chosen.json)


if __name__ == "__main__":
    main()

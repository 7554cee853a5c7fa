"""Feeds that turn stale while they are read: `python -m tests.benchmarks.stale`.

Two thousand times a second, whatever becomes of the questions before, one of ten feeds is asked for on one
of fifty connections; times are counted from when a question was due. The feeds have a lifetime of ten
minutes, or one of a second and an origin that takes 300 ms. (Of that second, feedproxy makes 0.9 to 1.1 s,
each feed its own, and refreshes in the last tenth.) The servers have the first processor, the load and the
origin the second. All servers run at once and take turns in each round, as do their two lifetimes.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.client import Answered, all_good, connections, paced, percentile_ms
from tests.benchmarks.servers import (
    SERVER_CPU,
    Server,
    asked,
    feedproxy,
    load_from_here,
    nginx,
    origin,
    varnish,
)
from tests.benchmarks.table import middle, options, show

CONNECTIONS = 50
FEEDS = 10
PER_S = 2000
RUN_S = 3
FRESH_S, TURNING_S = 600, 1


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run: times, how often a feed was refreshed, and how soon at the soonest."""

    p50_ms: float
    p99_ms: float
    refreshes_per_s: float
    apart_s: float


def load(port: int, targets: list[str]) -> list[Answered]:
    """What all clients got in RUN_S seconds. Feeds are there before, and of different age."""
    first = [(TURNING_S / FEEDS * number, target) for number, target in enumerate(targets)]
    steady = [(number / PER_S, targets[number % FEEDS]) for number in range(PER_S * RUN_S)]
    with connections([port] * CONNECTIONS) as pool:
        all_good(paced(pool, first), FEEDS)
        return paced(pool, steady)


def run(server: Server, source: Server, name: str) -> Run:
    targets = [f"/xrpc/app.bsky.feed.getAuthorFeed?actor={name}-{n}.example.com" for n in range(FEEDS)]
    answers = load(server.port, targets)
    all_good(answers, PER_S * RUN_S)
    count, apart_s = asked(source, targets)
    refreshes_per_s = (count - FEEDS) / FEEDS / RUN_S
    return Run(percentile_ms(answers, 0.5), percentile_ms(answers, 0.99), refreshes_per_s, apart_s)


@contextlib.contextmanager
def competitors(source: Server) -> Iterator[dict[str, dict[int, Server]]]:
    """Each server by the lifetime that it gives feeds."""
    lifetimes = (FRESH_S, TURNING_S)
    with contextlib.ExitStack() as stack:
        yield {
            "feedproxy": {
                ttl_s: stack.enter_context(feedproxy(source, cpus=SERVER_CPU, CACHE_TTL=ttl_s))
                for ttl_s in lifetimes
            },
            "nginx": {
                ttl_s: stack.enter_context(nginx(source, cpus=SERVER_CPU, ttl_s=ttl_s)) for ttl_s in lifetimes
            },
            "Varnish": {
                ttl_s: stack.enter_context(varnish(source, cpus=SERVER_CPU, ttl_s=ttl_s))
                for ttl_s in lifetimes
            },
        }


def row(name: str, fresh: list[Run], turning: list[Run]) -> dict[str, object]:
    fresh_p99_ms, turning_p99_ms = (middle([one.p99_ms for one in runs]) for runs in (fresh, turning))
    return {
        "server": name,
        "fresh p50 ms": middle([one.p50_ms for one in fresh]),
        "p99 ms": fresh_p99_ms,
        "turning stale p50 ms": middle([one.p50_ms for one in turning]),
        "p99 ms ": turning_p99_ms,
        "x fresh p99": turning_p99_ms / fresh_p99_ms,
        "refreshes a feed and second": middle([one.refreshes_per_s for one in turning]),
        "at least s apart": min(one.apart_s for one in turning),
    }


def main() -> None:
    chosen = options(__doc__ or "", rounds=9)
    runs: defaultdict[tuple[str, int], list[Run]] = defaultdict(list)
    load_from_here()
    with origin() as source, competitors(source) as servers:
        for number in range(chosen.rounds):
            for name, by_lifetime in servers.items():
                for ttl_s, server in by_lifetime.items():
                    feeds = f"{'slow300' if ttl_s == TURNING_S else 'fresh'}-{number}-{name.lower()}"
                    runs[name, ttl_s].append(run(server, source, feeds))
    rows = [row(name, runs[name, FRESH_S], runs[name, TURNING_S]) for name in servers]
    show(f"Feeds that turn stale while they are read, {PER_S:,} requests/s", rows, chosen.json)


if __name__ == "__main__":
    main()

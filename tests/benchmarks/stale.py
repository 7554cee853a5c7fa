"""Feeds that turn stale while they are read: `python -m tests.benchmarks.stale`.

Fifty clients ask without a pause for ten feeds, once with a lifetime of ten minutes, once with one of a
second and an origin that takes 300 ms.
"""

from __future__ import annotations

import asyncio
import contextlib

from tests.benchmarks.client import Answered, Connection, all_good, percentile_ms
from tests.benchmarks.servers import Server, asked, feedproxy, get, nginx, origin, varnish
from tests.benchmarks.table import middle, options, show

CLIENTS = 50
FEEDS = 10
RUN_S = 5.0


async def load(port: int, targets: list[str]) -> list[Answered]:
    """What all clients got in RUN_S seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + RUN_S

    async def read(number: int) -> list[Answered]:
        connection = await Connection.open(port)
        answers = []
        while loop.time() < end:
            answers.append(await connection.get(targets[(number + len(answers)) % FEEDS]))
        connection.close()
        return answers

    return [answer for answers in await asyncio.gather(*map(read, range(CLIENTS))) for answer in answers]


def run(server: Server, source: Server, name: str) -> tuple[float, float, float]:
    """p50, p99, and origin requests for each feed and second."""
    targets = [f"/xrpc/app.bsky.feed.getAuthorFeed?actor={name}-{n}.example.com" for n in range(FEEDS)]
    for target in targets:
        get(server.port, target)
    before = sum(asked(source, target) for target in targets)
    answers = asyncio.run(load(server.port, targets))
    all_good(answers)
    refreshes = sum(asked(source, target) for target in targets) - before
    return percentile_ms(answers, 0.5), percentile_ms(answers, 0.99), refreshes / FEEDS / RUN_S


def main() -> None:
    chosen = options(__doc__ or "", rounds=3)
    rows = []
    with origin() as source:
        for name, start in {
            "feedproxy": lambda ttl_s: feedproxy(source, CACHE_TTL=ttl_s),
            "nginx": lambda ttl_s: nginx(source, ttl_s=ttl_s),
            "Varnish": lambda ttl_s: varnish(source, ttl_s=ttl_s),
        }.items():
            with contextlib.ExitStack() as stack:
                servers = {ttl_s: stack.enter_context(start(ttl_s)) for ttl_s in (600, 1)}
                runs = {
                    ttl_s: [
                        run(server, source, f"{'slow300' if ttl_s == 1 else 'fresh'}-{n}-{name.lower()}")
                        for n in range(chosen.rounds)
                    ]
                    for ttl_s, server in servers.items()
                }
            fresh, stale = (
                [middle([one[column] for one in runs[ttl_s]]) for column in range(3)] for ttl_s in (600, 1)
            )
            rows.append(
                {
                    "server": name,
                    "fresh p50 ms": fresh[0],
                    "fresh p99 ms": fresh[1],
                    "turning stale p50 ms": stale[0],
                    "p99 ms": stale[1],
                    "x fresh p99": stale[1] / fresh[1],
                    "refreshes a feed and second": stale[2],
                }
            )
    show("Feeds that turn stale while they are read", rows, chosen.json)


if __name__ == "__main__":
    main()

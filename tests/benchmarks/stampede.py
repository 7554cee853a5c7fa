"""A hundred clients ask for one unknown feed at once: `python -m tests.benchmarks.stampede`.

The origin takes 100 ms for 4 KB. Peers are nginx (lock, background update, stale on error) and Varnish;
"two hosts" are two feedproxies around one Redis, with fifty clients each.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.benchmarks.client import Answered, Connection, percentile_ms
from tests.benchmarks.servers import Server, asked, feedproxy, nginx, origin, redis, varnish
from tests.benchmarks.table import middle, options, show

CLIENTS = 100
CASES = {
    "cacheable": "small-slow100",
    "no-store": "small-slow100-private",
    "origin answers 500": "small-slow100-failing",
    "origin closes": "small-slow100-closing",
    "the first client leaves": "small-slow100-leaving",
}
LEAVES_AFTER_S = 0.05


async def stampede(ports: Sequence[int], target: str, *, first_leaves: bool) -> list[Answered]:
    """The answers of all who stay; the first comes 10 ms ahead of the others if it is to leave."""
    connections = [await Connection.open(port) for port in itertools.islice(itertools.cycle(ports), CLIENTS)]
    staying = connections
    if first_leaves:
        first, *staying = connections
        leaving = asyncio.create_task(first.get(target))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(LEAVES_AFTER_S - 0.01, first.close)
    answers = await asyncio.gather(*(one.get(target) for one in staying), return_exceptions=True)
    if first_leaves:
        await asyncio.gather(leaving, return_exceptions=True)
    for one in connections:
        one.close()
    return [answer for answer in answers if isinstance(answer, Answered)]


@contextlib.contextmanager
def competitors() -> Iterator[tuple[Server, dict[str, list[int]]]]:
    """The origin, and the ports of all who stand before it."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(origin())
        store = stack.enter_context(redis())
        ours = stack.enter_context(feedproxy(source))
        hosts = [stack.enter_context(feedproxy(source, REDIS_URL=store)) for _ in range(2)]
        ngx = stack.enter_context(nginx(source))
        var = stack.enter_context(varnish(source))
        yield (
            source,
            {
                "feedproxy": [ours.port],
                "feedproxy, two hosts": [host.port for host in hosts],
                "nginx": [ngx.port],
                "Varnish": [var.port],
            },
        )


def main() -> None:
    chosen = options(__doc__ or "", rounds=5)
    results = defaultdict(list)
    with competitors() as (source, ports_of):
        for number in range(chosen.rounds):
            for case, actor in CASES.items():
                for name, ports in ports_of.items():
                    who = name.lower().replace(" ", "").replace(",", "-")
                    target = f"/xrpc/app.bsky.feed.getAuthorFeed?actor={actor}-{number}.{who}.example.com"
                    answers = asyncio.run(stampede(ports, target, first_leaves="leaving" in actor))
                    results[case, name].append((asked(source, target), answers))
    rows = [
        {
            "case": case,
            "server": name,
            "origin requests": int(middle([count for count, _ in runs])),
            "p50 ms": middle([percentile_ms(answers, 0.5) for _, answers in runs if answers] or [0.0]),
            "p99 ms": middle([percentile_ms(answers, 0.99) for _, answers in runs if answers] or [0.0]),
            "answers": int(middle([len(answers) for _, answers in runs])),
        }
        for (case, name), runs in results.items()
    ]
    show("100 clients ask for one unknown feed", rows, chosen.json)


if __name__ == "__main__":
    main()

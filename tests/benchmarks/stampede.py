"""A hundred clients ask for one unknown feed at once: `python -m tests.benchmarks.stampede`.

The origin takes 100 ms for 4 KB. Peers are nginx (lock, background update, stale on error) and Varnish;
"two hosts" are two feedproxies around one Redis, with fifty clients each. The servers have the first
processor, the clients, the origin and the Redis the second. All run at once and take turns in each case.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence

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
from tests.harness.redis_servers import redis_server

CLIENTS = 100
CASES = {
    "cacheable": "small-slow100",
    "no-store": "small-slow100-private",
    "origin answers 500": "small-slow100-failing",
    "origin closes": "small-slow100-closing",
    "the first client leaves": "small-slow100-leaving",
}
FAILING = ("origin answers 500", "origin closes")
# The others come so long after the first, who leaves so long after it has asked.
HEAD_START_S, LEAVES_AFTER_S = 0.01, 0.05


def stampede(ports: Sequence[int], target: str, *, first_leaves: bool) -> list[Answered]:
    """The answers of all who stay."""
    with connections(itertools.islice(itertools.cycle(ports), CLIENTS)) as pool:
        if not first_leaves:
            return paced(pool, [(0.0, target)] * CLIENTS)
        first, *staying = pool
        leaving = threading.Timer(LEAVES_AFTER_S, first.close)
        leaving.start()
        first.ask(target)
        answers = paced(staying, [(HEAD_START_S, target)] * len(staying))
        leaving.join()
        return answers


def check(case: str, answers: Sequence[Answered]) -> None:
    """Raises RuntimeError unless everyone has the answer that the case is about."""
    if case not in FAILING:
        all_good(answers, CLIENTS - (case == "the first client leaves"))
    elif statuses := {answer.status for answer in answers if answer.status < 500}:
        raise RuntimeError(f"{case}: answered with {sorted(statuses)}")


@contextlib.contextmanager
def competitors() -> Iterator[tuple[Server, dict[str, list[int]]]]:
    """The origin, and the ports of all who stand before it."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(origin())
        store = stack.enter_context(redis_server()).url
        # Whoever brings as many at once as there are clients here; the peers have no limit.
        given = {"UPSTREAM_CONCURRENCY": CLIENTS}
        ours = stack.enter_context(feedproxy(source, cpus=SERVER_CPU, **given))
        hosts = [
            stack.enter_context(feedproxy(source, cpus=SERVER_CPU, REDIS_URL=store, **given))
            for _ in range(2)
        ]
        ngx = stack.enter_context(nginx(source, cpus=SERVER_CPU))
        var = stack.enter_context(varnish(source, cpus=SERVER_CPU))
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
    chosen = options(__doc__ or "", rounds=7)
    results = defaultdict(list)
    load_from_here()
    with competitors() as (source, ports_of):
        for number in range(chosen.rounds):
            for case, actor in CASES.items():
                for name, ports in ports_of.items():
                    who = name.lower().replace(" ", "").replace(",", "-")
                    target = f"/xrpc/app.bsky.feed.getAuthorFeed?actor={actor}-{number}.{who}.example.com"
                    answers = stampede(ports, target, first_leaves="leaving" in actor)
                    check(case, answers)
                    results[case, name].append((asked(source, [target])[0], answers))
    rows = [
        {
            "case": case,
            "server": name,
            "origin requests": int(middle([count for count, _ in runs])),
            "p50 ms": middle([percentile_ms(answers, 0.5) for _, answers in runs]),
            "p99 ms": middle([percentile_ms(answers, 0.99) for _, answers in runs]),
            "slowest p99 ms": max(percentile_ms(answers, 0.99) for _, answers in runs),
            "answers": int(middle([len(answers) for _, answers in runs])),
        }
        for (case, name), runs in results.items()
    ]
    show(f"{CLIENTS} clients ask for one unknown feed", rows, chosen.json)


if __name__ == "__main__":
    main()

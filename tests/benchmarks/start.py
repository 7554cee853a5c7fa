"""From process start to the first answer, and the memory that takes: `python -m tests.benchmarks.start`."""

from __future__ import annotations

import contextlib
import time
from functools import partial

from tests.benchmarks.servers import feedproxy, get, nginx, origin, varnish
from tests.benchmarks.table import middle, options, show

TARGET = "/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.example.com&limit=30"


def main() -> None:
    chosen = options(__doc__ or "", rounds=7)
    rows = []
    with origin() as source:
        for name, start in {
            "feedproxy": partial(feedproxy, settle=False),
            "nginx": nginx,
            "Varnish": varnish,
        }.items():
            times_s, sizes_mb = [], []
            for number in range(chosen.rounds + 1):
                began_at = time.perf_counter()
                with contextlib.ExitStack() as stack:
                    server = stack.enter_context(start(source))
                    status, _ = get(server.port, TARGET)
                    if status != 200:
                        raise RuntimeError(f"{name} answered {status}")
                    if number == 0:
                        continue  # the first start after an installation compiles
                    times_s.append(time.perf_counter() - began_at)
                    sizes_mb.append(server.memory_mb())
            rows.append(
                {
                    "server": name,
                    "first answer after ms": middle(times_s) * 1000,
                    "slowest ms": max(times_s) * 1000,
                    "MB of its processes": ", ".join(map(str, max(sizes_mb, key=sum))),
                }
            )
    show("Start", rows, chosen.json)


if __name__ == "__main__":
    main()

"""From process start to the first answer, and the memory of each process: `python -m tests.benchmarks.start`.

feedproxy twice: as it is installed for production (see installed.py), and from the environment that runs
this, which has packages that are imported where they are found. The servers take turns in each round. Before
the first that counts each has started once, which compiles what an installation has left. Memory is resident
memory once all processes are there and at rest.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from tests.benchmarks.installed import compiled, install, modules
from tests.benchmarks.servers import Server, await_quiet, feedproxy, get, nginx, origin, varnish
from tests.benchmarks.table import middle, options, show

TARGET = "/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.example.com&limit=30"
HERE = Path(sys.executable).parent


def once(
    start: Callable[[Server], AbstractContextManager[Server]], source: Server
) -> tuple[float, list[int]]:
    """How long the first answer took, and how large each process then became."""
    began_at = time.perf_counter()
    with start(source) as server:
        status, _ = get(server.port, TARGET)
        took_s = time.perf_counter() - began_at
        if status != 200:
            raise RuntimeError(f"{server.name} answered {status}")
        await_quiet(server)
        return took_s, server.memory_mb()


def main() -> None:
    chosen = options(__doc__ or "", rounds=9)
    environments = {"feedproxy": install(), "feedproxy, for development": HERE}
    times_s, sizes_mb = defaultdict(list), defaultdict(list)
    with origin() as source:
        starts = {
            **{name: partial(feedproxy, settle=False, scripts=at) for name, at in environments.items()},
            "nginx": nginx,
            "Varnish": varnish,
        }
        for number in range(chosen.rounds + 1):
            for name, start in starts.items():
                took_s, each_mb = once(start, source)
                if number:
                    times_s[name].append(took_s)
                    sizes_mb[name].append(each_mb)
    rows = [
        {
            "server": name,
            "first answer after ms": middle(times_s[name]) * 1000,
            "slowest ms": max(times_s[name]) * 1000,
            "MB of each process": ", ".join(map(str, max(sizes_mb[name], key=max))),
            "modules compiled": _compiled(environments[name]) if name in environments else "-",
        }
        for name in starts
    ]
    show("Start", rows, chosen.json)


def _compiled(scripts: Path) -> str:
    files = modules(scripts)
    return f"{sum(map(compiled, files)):,} of {len(files):,}"


if __name__ == "__main__":
    main()

"""Fresh hits a second, beside nginx, Varnish and bare servers: `python -m tests.benchmarks.hits`.

The server has the first processor, the load generator (wrk, 64 connections, the head of a browser behind a
reverse proxy) the second; with two workers they share both. Servers take turns in each round. "per CPU
second" is what the server's processes could do with a processor of their own, whatever else the machine does.
p99 is at half of nginx's peak load (h2load, Debian's nghttp2-client).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.servers import (
    LOAD_CPU,
    SERVER_CPU,
    Server,
    constant,
    feedproxy,
    get,
    nginx,
    origin,
    varnish,
)
from tests.benchmarks.table import middle, options, show

TARGET = "/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.example.com&limit=30"
CONNECTIONS = 64
ROUND_S = 3
HEAD = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0",
    "Accept": "*/*",
    "Accept-Language": "en-US,en;q=0.9,de;q=0.8",
    "Origin": "https://blog.example",
    "Referer": "https://blog.example/",
    "Sec-Fetch-Dest": "empty",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "cross-site",
    "sec-ch-ua": '"Chromium";v="142", "Not_A Brand";v="99"',
    "sec-ch-ua-mobile": "?0",
    "sec-ch-ua-platform": '"Linux"',
}
BARE = ("asgi", "protocol")
CODINGS = {"identity": "identity", "compressed": "gzip, deflate, br, zstd"}


def peak(server: Server, accept: str, cpus: str | None) -> tuple[float, float]:
    """Requests a second, and a second of the server's processor time."""
    fields = [
        item
        for name, value in {**HEAD, "Accept-Encoding": accept}.items()
        for item in ("-H", f"{name}: {value}")
    ]
    before = server.cpu_s()
    output = _run(["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}s", *fields, _url(server)], cpus)
    spent_s = server.cpu_s() - before
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    count = int(re.search(r"(\d+) requests in", output)[1])
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]), count / max(spent_s, 0.01)


def p99_ms(server: Server, accept: str, per_s: float, cpus: str | None) -> float:
    """The 99th percentile of the time to an answer at `per_s` requests a second."""
    fields = [f"-H{name.lower()}: {value}" for name, value in {**HEAD, "Accept-Encoding": accept}.items()]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        rate = max(1, int(per_s / CONNECTIONS))
        paced = ["h2load", "--h1", f"-c{CONNECTIONS}", "-t1", f"-D{ROUND_S}", f"--rps={rate}"]
        _run([*paced, f"--log-file={log}", *fields, _url(server)], cpus)
        times_us = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    return times_us[int(len(times_us) * 0.99)] / 1000


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}{TARGET}"


def _run(command: list[str], cpus: str | None) -> str:
    pinned = ["taskset", "-c", cpus, *command] if cpus else command
    return subprocess.run(pinned, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def competitors(workers: int) -> Iterator[dict[str, list[Server]]]:
    """The servers for each coding, warm, on the first processor if they have one worker.

    Those that write a constant write what we send for that coding.
    """
    cpus = SERVER_CPU if workers == 1 else None
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(origin())
        ours = stack.enter_context(feedproxy(source, workers=workers, cpus=cpus))
        servers = [ours, stack.enter_context(nginx(source, workers=workers, cpus=cpus))]
        bare: dict[str, list[Server]] = {coding: [] for coding in CODINGS}
        if workers == 1:
            servers.append(stack.enter_context(varnish(source, cpus=cpus)))
        for server in servers:
            for accept in CODINGS.values():
                for _ in range(20):
                    get(server.port, TARGET, {"Accept-Encoding": accept})
        if workers == 1:
            for coding, accept in CODINGS.items():
                body = get(ours.port, TARGET, {"Accept-Encoding": accept})[1]
                bare[coding] = [stack.enter_context(constant(kind, body, cpus=cpus)) for kind in BARE]
        yield {coding: [*servers, *bare[coding]] for coding in CODINGS}


def measure(workers: int, rounds: int) -> list[dict[str, object]]:
    cpus = LOAD_CPU if workers == 1 else None
    per_s, per_cpu_s, tails_ms = defaultdict(list), defaultdict(list), defaultdict(list)
    with competitors(workers) as servers:
        for _ in range(rounds):
            for coding, accept in CODINGS.items():
                for server in servers[coding]:
                    wall, cpu = peak(server, accept, cpus)
                    per_s[coding, server.name].append(wall)
                    per_cpu_s[coding, server.name].append(cpu)
        for _ in range(rounds):
            for coding, accept in CODINGS.items():
                for server in servers[coding]:
                    half = middle(per_s[coding, "nginx"]) / 2
                    tails_ms[coding, server.name].append(p99_ms(server, accept, half, cpus))
    return [
        {
            "server": name,
            "workers": workers,
            "answer": coding,
            "requests/s": middle(walls),
            "x nginx": middle(walls) / middle(per_s[coding, "nginx"]),
            "per CPU second": middle(per_cpu_s[coding, name]),
            "x nginx ": middle(per_cpu_s[coding, name]) / middle(per_cpu_s[coding, "nginx"]),
            "p99 ms": middle(tails_ms[coding, name]),
        }
        for (coding, name), walls in per_s.items()
    ]


if __name__ == "__main__":
    chosen = options(__doc__ or "", rounds=5)
    show("Fresh hits of 13.7 KB", [*measure(1, chosen.rounds), *measure(2, chosen.rounds)], chosen.json)

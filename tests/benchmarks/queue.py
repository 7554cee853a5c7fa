"""The queue beside taskiq-redis and streaq: `python -m tests.benchmarks.queue`.

One store, a Valkey with an append-only file synced every second, serves all of them in turn. The peers run in
an environment of their own, made from PyPI in a temporary place. Rounds are interleaved, medians are shown.

- enqueue: one client, call after call, and sixteen at a time; from the call to its answer.
- drain: one worker process with up to 100 jobs at a time, from the first job's begin to the last one's; jobs
  that do nothing, and such as wait for 20 ms, as for a PDS. Ours go to 100 accounts.
- SIGKILL: from the kill of a worker to the begin of the job that it held on another. For the peers, the time
  that they call idle is set to our lease (by default it is 600 s and 60 s); taskiq-redis looks for such jobs
  only when new ones come.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import redis

from tests.harness.redis_servers import RedisServer, redis_server

PEERS = ("taskiq==0.13.0", "taskiq-redis==1.2.4", "streaq==7.2.0", "uvloop==0.23.0", "hiredis==3.5.0")
DURABILITY = ("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
CONCURRENCY = 100
LEASE_S = 10.0
GIVE_UP_S = 60.0
HERE = Path(__file__).parent
ROWS = {
    "enqueue p50, ms": "enqueue_p50_ms",
    "enqueue p99, ms": "enqueue_p99_ms",
    "enqueue p50, 16 clients, ms": "enqueue_16_p50_ms",
    "enqueue p99, 16 clients, ms": "enqueue_16_p99_ms",
    "drain, no-op, jobs/s": "drain_noop_per_s",
    "drain, 20 ms, jobs/s": "drain_20ms_per_s",
    "SIGKILL to re-execution, s": "rescue_s",
}


class Contestant:
    """A queue that is driven by commands, each in a process of its own; see queue_ours.py."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.measured: dict[str, list[float | None]] = {key: [] for key in ROWS.values()}
        self._command = command

    def start(self, what: str, url: str, *numbers: float) -> subprocess.Popen[str]:
        words = [*self._command, what, url, *(f"{number:g}" for number in numbers)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def tell(self, what: str, url: str, *numbers: float) -> dict[str, Any]:
        """What the command says in its last line."""
        process = self.start(what, url, *numbers)
        lines = process.communicate(timeout=600)[0].splitlines()
        if process.returncode or not lines:
            raise SystemExit(f"{self.name} {what} ended with {process.returncode}")
        return json.loads(lines[-1])

    def note(self, key: str, value: float | None) -> None:
        self.measured[key].append(value)

    def median(self, key: str) -> float | None:
        """None if it did not come to an end, or was not measured."""
        values = [value for value in self.measured[key] if value is not None]
        return statistics.median(values) if len(values) == len(self.measured[key]) > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rescues", type=int, default=1, help="how often a worker is killed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fp-bench-") as directory:
        peer = install_peers(Path(directory))
        # -P: the peers want the `queue` of the standard library, not this file.
        contestants = [
            Contestant("feedproxy", sys.executable, "-m", "tests.benchmarks.queue_ours"),
            Contestant("taskiq-redis", peer, "-P", str(HERE / "queue_taskiq.py")),
            Contestant("streaq", peer, "-P", str(HERE / "queue_streaq.py")),
        ]
        with redis_server("valkey-9", *DURABILITY) as server:
            for number in range(options.rounds):
                for contestant in contestants:
                    say(f"round {number + 1} of {options.rounds}: {contestant.name}")
                    measure(contestant, server, options.jobs)
            for _ in range(options.rescues):
                for contestant in contestants:
                    say(f"SIGKILL: {contestant.name}")
                    contestant.note("rescue_s", rescue_s(contestant, server))
                    empty(server)
    report(contestants, options)


def install_peers(directory: Path) -> str:
    """A Python that has the peers."""
    say("making an environment for the peers")
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *PEERS], check=True)
    return str(python)


def measure(contestant: Contestant, server: RedisServer, jobs: int) -> None:
    for clients, label, drain, delay_s in (
        (1, "", "drain_noop_per_s", 0.0),
        (16, "_16", "drain_20ms_per_s", 0.02),
    ):
        took_s = sorted(contestant.tell("enqueue", server.url, jobs, clients)["took_s"])
        contestant.note(f"enqueue{label}_p50_ms", took_s[len(took_s) // 2] * 1000)
        contestant.note(f"enqueue{label}_p99_ms", took_s[int(len(took_s) * 0.99)] * 1000)
        contestant.note(drain, contestant.tell("drain", server.url, jobs, delay_s, CONCURRENCY)["per_s"])
        empty(server)


def rescue_s(contestant: Contestant, server: RedisServer) -> float | None:
    """How long a job lies after its worker's SIGKILL; None if it still does when we lose patience."""
    contestant.tell("enqueue", server.url, 1, 1)
    first = contestant.start("hold", server.url, LEASE_S)
    assert first.stdout is not None
    json.loads(first.stdout.readline())
    # The other is there before; it would otherwise have the time of its start on top.
    second = contestant.start("hold", server.url, LEASE_S)
    assert second.stdout is not None
    os.set_blocking(second.stdout.fileno(), False)
    time.sleep(3)
    first.send_signal(signal.SIGKILL)
    killed_at = time.time()
    first.wait()
    try:
        while time.time() < killed_at + GIVE_UP_S:
            line = second.stdout.readline()
            if line:
                return json.loads(line)["began_at"] - killed_at
            contestant.tell("enqueue", server.url, 2, 1)  # new jobs, for who looks only then
            time.sleep(0.5)
        return None
    finally:
        second.kill()
        second.wait()


def empty(server: RedisServer) -> None:
    """The store is the benchmark's own."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def report(contestants: list[Contestant], options: argparse.Namespace) -> None:
    ours, *peers = contestants
    say(
        f"\n{machine()}; Valkey 9, append-only file, everysec;"
        f" medians of {options.rounds} rounds, {options.jobs} jobs\n"
    )
    say("| | " + " | ".join(one.name for one in contestants) + " | ours : better peer |")
    say("|---|" + "---:|" * (len(contestants) + 1))
    ratios = {}
    for title, key in ROWS.items():
        known = [value for peer in peers if (value := peer.median(key)) is not None]
        own = ours.median(key)
        best = (max if key.endswith("per_s") else min)(known, default=None)
        ratios[key] = own / best if own is not None and best else None
        cells = [shown(one.median(key)) for one in contestants]
        say(f"| {title} | " + " | ".join(cells) + f" | {shown(ratios[key])} |")
    if options.json:
        measured = {one.name: one.measured for one in contestants}
        document = {"machine": machine(), "durability": "everysec", "measured": measured, "ratios": ratios}
        options.json.write_text(json.dumps(document, indent=1))


def shown(value: float | None) -> str:
    if value is None:
        return f"not within {GIVE_UP_S:g} s"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, load {load:.1f}"


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()

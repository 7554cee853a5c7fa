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

import contextlib
import itertools
import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.table import options, show
from tests.harness.redis_servers import RedisServer, redis_server

PEERS = ("taskiq==0.13.0", "taskiq-redis==1.2.4", "streaq==7.2.0", "uvloop==0.23.0", "hiredis==3.5.0")
DURABILITY = ("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
JOBS = 3000
CONCURRENCY = 100
LEASE_S = 10.0
GIVE_UP_S = 60.0
NEVER = f"not within {GIVE_UP_S:g} s"
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

    def start(self, what: str, url: str, *numbers: float) -> subprocess.Popen[bytes]:
        words = [*self._command, what, url, *(f"{number:g}" for number in numbers)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)

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
    chosen = options(__doc__ or "", rounds=5)
    with tempfile.TemporaryDirectory(prefix="fp-bench-") as directory:
        peer = install_peers(Path(directory))
        # -P: the peers want the `queue` of the standard library, not this file.
        contestants = [
            Contestant("feedproxy", sys.executable, "-m", "tests.benchmarks.queue_ours"),
            Contestant("taskiq-redis", peer, "-P", str(HERE / "queue_taskiq.py")),
            Contestant("streaq", peer, "-P", str(HERE / "queue_streaq.py")),
        ]
        with redis_server("valkey-9", *DURABILITY) as server:
            for number in range(chosen.rounds):
                for contestant in contestants:
                    say(f"round {number + 1} of {chosen.rounds}: {contestant.name}")
                    measure(contestant, server)
            for contestant in contestants:
                say(f"SIGKILL: {contestant.name}")
                contestant.note("rescue_s", rescue_s(contestant, server))
                empty(server)
    show(f"Queue: {JOBS} jobs; Valkey 9, append-only file, everysec", list(rows(contestants)), chosen.json)


def install_peers(directory: Path) -> str:
    """A Python that has the peers."""
    say("making an environment for the peers")
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *PEERS], check=True)
    return str(python)


def measure(contestant: Contestant, server: RedisServer) -> None:
    for clients, label, drain, delay_s in (
        (1, "", "drain_noop_per_s", 0.0),
        (16, "_16", "drain_20ms_per_s", 0.02),
    ):
        took_s = sorted(contestant.tell("enqueue", server.url, 0, JOBS, clients)["took_s"])
        contestant.note(f"enqueue{label}_p50_ms", took_s[len(took_s) // 2] * 1000)
        contestant.note(f"enqueue{label}_p99_ms", took_s[int(len(took_s) * 0.99)] * 1000)
        contestant.note(drain, contestant.tell("drain", server.url, JOBS, delay_s, CONCURRENCY)["per_s"])
        empty(server)


def rescue_s(contestant: Contestant, server: RedisServer) -> float | None:
    """How long a job lies after its worker's SIGKILL; None if it still does when we lose patience."""
    numbers = itertools.count(1)

    def new_job() -> None:
        contestant.tell("enqueue", server.url, next(numbers), 1, 1)

    contestant.tell("enqueue", server.url, 0, 1, 1)
    with ended(contestant.start("hold", server.url, LEASE_S)) as first:
        begun(first, GIVE_UP_S)
        # The other is at work before; it would otherwise have the time of its start on top.
        with ended(contestant.start("hold", server.url, LEASE_S)) as second:
            give_up_at = time.time() + GIVE_UP_S
            while begun(second, 0.5) is None and time.time() < give_up_at:
                new_job()
            first.kill()
            killed_at = time.time()
            while time.time() < killed_at + GIVE_UP_S:
                job = begun(second, 0.5)
                if job is None:
                    new_job()  # for who looks for lost ones only then
                elif job["number"] == "0":
                    return job["began_at"] - killed_at
    return None


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process has come to its end when the block has."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def begun(process: subprocess.Popen[bytes], patience_s: float) -> dict[str, Any] | None:
    """The next job that the process says it has begun, None if there is none in time."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], patience_s)[0]:
        return None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a worker has ended by itself")
    return json.loads(line)


def empty(server: RedisServer) -> None:
    """The store is the benchmark's own."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def rows(contestants: list[Contestant]) -> Iterator[dict[str, object]]:
    """One for each number, with ours beside the better peer's."""
    ours, *peers = contestants
    for title, key in ROWS.items():
        known = [value for peer in peers if (value := peer.median(key)) is not None]
        own, best = ours.median(key), (max if key.endswith("per_s") else min)(known, default=None)
        row = {one.name: NEVER if (value := one.median(key)) is None else value for one in contestants}
        yield {"": title, **row, "ours : better peer": own / best if own is not None and best else "-"}


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()

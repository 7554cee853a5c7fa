"""Real `feedproxy worker` processes, forked from one that has imported everything: hundreds cost seconds.

Each runs what the command runs, in a process of its own that may be frozen, killed and told to reload.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.logs import LogFile

STOP_S = 15.0
_NURSERY = Path(__file__).with_name("forking.py")


class WorkerProcess:
    """A worker. Signals go to this very process, however long it has been dead."""

    def __init__(self, pid: int, log_path: Path) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)
        self._log = LogFile(log_path)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        """End it as an operator would."""
        self.send(signal.SIGTERM)
        self._wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def reload(self) -> None:
        """SIGHUP."""
        self.send(signal.SIGHUP)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it has logged so far under that name."""
        return self._log.events(name)

    def log_text(self) -> str:
        return self._log.text()

    def close(self) -> None:
        self.kill()
        os.close(self._handle)

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._handle, selectors.EVENT_READ)
            assert selector.select(STOP_S), f"worker {self.pid} does not end: {self.log_text()[-2000:]}"


class Nursery:
    """Starts workers, and ends those that still run when it is left."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self._process = process
        self.directory = directory
        self._workers: list[WorkerProcess] = []

    def start(self, environ: Mapping[str, str]) -> WorkerProcess:
        """A worker with this environment."""
        log_path = self.directory / f"worker-{len(self._workers)}.log"
        log_path.touch()
        order = json.dumps({"environ": dict(environ), "log": str(log_path)})
        self._process.stdin.write(f"{order}\n".encode())
        self._process.stdin.flush()
        worker = WorkerProcess(int(self._process.stdout.readline()), log_path)
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._process.stdin.close()
        self._process.wait(STOP_S)
        self._process.stdout.close()


@contextlib.contextmanager
def nursery_in(directory: Path) -> Iterator[Nursery]:
    """A nursery that keeps the logs of its workers in `directory`."""
    command = [sys.executable, "-P", str(_NURSERY)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    nursery = Nursery(process, directory)
    try:
        yield nursery
    finally:
        nursery.close()

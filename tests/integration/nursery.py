"""Makes `feedproxy worker` processes that need not import everything anew: a tenth of a second each, not one.

Run as a script, it reads commands from stdin, a line each, and answers each with a line: `start` with the pid
of a new worker, `wait PID` with how it ended (as subprocess.Popen.returncode). It ends when stdin does, and
its workers with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self


class Nursery:
    """The script as a child of the test's own process; its workers have the settings of `environ`."""

    def __init__(self, environ: Mapping[str, str], log_path: Path) -> None:
        self._environ = dict(environ)
        self._log_path = log_path
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._process is not None, "not started"
        self._process.communicate(timeout=30)

    def start(self) -> int:
        """A new worker; its pid."""
        return self._do("start")

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        os.kill(pid, signal.SIGKILL)
        code = self._do(f"wait {pid}")
        assert code == -signal.SIGKILL, f"a worker ended by itself with {code}"

    def stop(self, pid: int) -> int:
        """SIGTERM; how it ended."""
        os.kill(pid, signal.SIGTERM)
        return self._do(f"wait {pid}")

    def _do(self, command: str) -> int:
        assert self._process is not None, "not started"
        self._process.stdin.write(f"{command}\n")
        return int(self._process.stdout.readline())


def _worker() -> None:
    from proxy import cli

    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.argv = ["feedproxy", "worker"]
    cli.main()


def _start() -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _worker()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else ended.code is not None
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def main() -> None:
    import proxy.runtime  # noqa: F401 - so that no worker has to

    children = set()
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "start":
            pid = _start()
            children.add(pid)
            print(pid, flush=True)  # noqa: T201 - the answer
        else:
            pid = int(argument)
            _, status = os.waitpid(pid, 0)
            children.discard(pid)
            print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the answer
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

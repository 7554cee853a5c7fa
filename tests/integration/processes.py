"""Start, watch and end `feedproxy serve` from tests: its own port and data directory, no fixed waits."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from harness.logs import LogFile
from harness.waiting import DEADLINE_S, until_true

STOP_S = 15.0  # more than `serve` takes to stop, whatever hangs
_STARTED = ("web_started", "worker_started", "valkey_started")
STANDIN = Path(__file__).with_name("standin.py")


def is_running(pid: int) -> bool:
    """Whether the process still runs; one that has ended and was not collected yet does not."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0]
        return state not in ("Z", "X")
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def environment(data_dir: Path, **settings: object) -> dict[str, str]:
    """An environment without any FEEDPROXY_ setting of the host, and with these."""
    given = {"PORT": 0, "DATA_DIR": data_dir, "LOG_FORMAT": "json", "LOG_LEVEL": "debug", **settings}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FEEDPROXY_")}
    for name, value in given.items():
        environ[name if name.startswith("STANDIN_") else f"FEEDPROXY_{name}"] = str(value)
    return environ


class ServeProcess:
    """One `feedproxy serve` on a free port of loopback.

    `settings` are FEEDPROXY_ names without the prefix. `command` replaces the command line; by default it is
    the real one. It inherits `pass_fds`. Use as a context manager: on leaving, everything it started is gone.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        command: Sequence[str] | None = None,
        pass_fds: Sequence[int] = (),
        **settings: object,
    ) -> None:
        self.data_dir = data_dir
        self._pass_fds = tuple(pass_fds)
        self._command = list(command or (sys.executable, "-P", "-m", "proxy.cli", "serve"))
        self._environ = environment(data_dir, **settings)
        self._log = LogFile(data_dir.parent / f"{data_dir.name[:50]}.{id(self)}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def with_standin(cls, data_dir: Path, **settings: object) -> ServeProcess:
        """A supervisor whose web processes are stand-ins."""
        return cls(data_dir, command=(sys.executable, "-P", str(STANDIN), "serve"), **settings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in self.started_pids():
            if self._is_still(pid):
                os.kill(pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        with self._log.path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
            )

    def wait_event(self, name: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """The `count`th log event of that name with these fields, awaited; an end of the process fails."""

        def found() -> dict[str, Any] | None:
            over = self.exit_code() is not None
            matching = [event for event in self.events(name) if fields.items() <= event.items()]
            if len(matching) >= count:
                return matching[count - 1]
            if over:
                raise AssertionError(f"ended with {self.exit_code()} before {name}:\n{self.log_text()}")
            return None

        return until_true(found, lambda: f"log event {name} {fields}\n{self.log_text()[-3000:]}")

    def wait_ready(self) -> None:
        """Return when /readyz answers 200."""
        self.wait_event("listening")

        def ready() -> bool:
            if self.exit_code() is not None:
                raise AssertionError(f"ended with {self.exit_code()}:\n{self.log_text()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.get("/readyz")[0] == 200
            return False

        until_true(ready, "/readyz answers 200")

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.wait_event('listening')['port']}"

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of one GET."""
        connection = http.client.HTTPConnection(self.base_url.removeprefix("http://"), timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.send(number)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL the supervisor alone."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def wait(self) -> int:
        """Its exit code, awaited."""
        assert self._process is not None, "not started"
        return self._process.wait(DEADLINE_S)

    def exit_code(self) -> int | None:
        assert self._process is not None, "not started"
        return self._process.poll()

    def log_text(self) -> str:
        return self._log.text()

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Log events so far, of that name."""
        return self._log.events(name)

    def web_pids(self) -> list[int]:
        """Pids of the web processes that run now, as the log tells."""
        return [event["pid"] for event in self.events("web_started") if is_running(event["pid"])]

    def valkey_pid(self) -> int:
        """Pid of the Valkey started last, as the log tells."""
        return int(self.events("valkey_started")[-1]["pid"])

    def started_pids(self) -> list[int]:
        """Every pid that this supervisor says it has started."""
        return [event["pid"] for name in _STARTED for event in self.events(name)]

    def _is_still(self, pid: int) -> bool:
        """Whether the pid is still a process that we started, not one that has got its number since."""
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            return is_running(pid) and (b"valkey-server" in words or b"--control-fd" in words)
        return False

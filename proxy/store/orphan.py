"""The Valkey that outlived its `serve`: found, verified to be ours, and ended before another one starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from proxy.clock import Clock
from proxy.errors import OperationalError
from proxy.store.datadir import try_lock
from proxy.store.probe import exchange

PID_FILE = "valkey.pid"
PATIENCE_S = 5.0


async def clear_orphan(
    lock: IO[bytes], data_dir: Path, socket: Path, clock: Clock, stop: asyncio.Event
) -> int | None:
    """Take the lock that a living Valkey of this data directory holds, by ending that Valkey if there is one.

    Returns the process id of what had to go, 0 when it could be reached by its socket only, None when there
    was nothing or `stop` was set. Raises OperationalError when something holds the lock that is no process of
    ours.
    """
    if try_lock(lock, data_dir):
        return None
    ended = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        give_up_at = clock.steady() + PATIENCE_S
        told: int | None = None
        while clock.steady() < give_up_at:
            pid = await asyncio.to_thread(_find, data_dir, socket)  # one just started writes its pid only now
            if pid is None:
                await exchange(socket, b"SHUTDOWN\r\n")
            elif pid != told:
                _tell(pid, number)
                told = ended = pid
            if try_lock(lock, data_dir):
                return ended
            if stop.is_set():
                return None
            await asyncio.sleep(0.02)
    raise OperationalError(f"{lock.name} is held by a process that is no Valkey of ours")


def _tell(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)  # a stopped process would not hear it


def _find(data_dir: Path, socket: Path) -> int | None:
    return next((pid for pid in _candidates(data_dir) if _is_ours(pid, data_dir, socket)), None)


def _candidates(data_dir: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        yield int((data_dir / PID_FILE).read_text(encoding="ascii"))
    with contextlib.suppress(OSError):  # without /proc the pid file and the socket must do
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names only


def _is_ours(pid: int, data_dir: Path, socket: Path) -> bool:
    """Whether the process is a Valkey, or a fork of one, of this data directory: pids are used again."""
    if not Path("/proc/self/cmdline").exists():
        return _ps_says_ours(pid, socket)
    process = Path("/proc") / str(pid)
    try:
        return b"valkey-" in (process / "cmdline").read_bytes() and (process / "cwd").samefile(data_dir)
    except OSError:
        return False


def _ps_says_ours(pid: int, socket: Path) -> bool:
    try:
        found = subprocess.run(  # noqa: S603 - a number is all that varies
            ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"valkey-" in found.stdout and os.fsencode(socket) in found.stdout

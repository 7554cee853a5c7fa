"""The data directory: who owns it, and where the private Valkey's socket is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from proxy.errors import OperationalError

LOCK = "lock"
SOCKET = "valkey.sock"
# Where the socket is when its path in the data directory would be too long: a text file with its path.
SOCKET_ELSEWHERE = "valkey.sock.path"
# sun_path has 108 bytes on Linux and 104 on macOS, the terminating zero included.
_SOCKET_PATH_BYTES = 104


@contextlib.contextmanager
def data_dir_lock(data_dir: Path) -> Iterator[Path]:
    """Own the data directory, created if need be; yields its absolute path.

    Raises OperationalError when it cannot be used, or when another `serve` owns it.
    """
    data_dir = data_dir.absolute()
    _create(data_dir)
    with _opened(data_dir / LOCK) as file:
        if not try_lock(file, data_dir):
            holder = file.read().strip() or "unknown"
            raise OperationalError(f"{data_dir} is in use by feedproxy serve, pid {holder}")
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield data_dir


def try_lock(file: IO[Any], data_dir: Path) -> bool:
    """Take the lock on an open file if it is free; it lasts until every copy of the descriptor is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OperationalError(f"the file system of {data_dir} has no file locks: {error.strerror}") from None
    return True


def socket_path(data_dir: Path) -> Path:
    """Where the private Valkey of this data directory listens, or will.

    The same for `serve` and every other command, also when their environments differ.
    """
    data_dir = data_dir.absolute()
    path = data_dir / SOCKET
    if _is_addressable(path):
        return path
    with contextlib.suppress(OSError):
        recorded = Path(os.fsdecode((data_dir / SOCKET_ELSEWHERE).read_bytes().strip()))
        if recorded.parent.parent.is_dir():
            return recorded
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    if runtime_dir and Path(runtime_dir).is_dir():
        path = Path(runtime_dir) / f"feedproxy-{name}" / SOCKET
        if _is_addressable(path):
            return path
    return Path(tempfile.gettempdir()) / f"feedproxy-{os.getuid()}-{name}" / SOCKET


def socket_url(path: Path) -> str:
    """The address of a socket as FEEDPROXY_REDIS_URL has it."""
    return f"unix://{quote(os.fsencode(path), safe='/')}"


def prepare_socket_dir(data_dir: Path) -> Path:
    """Make the socket's directory, private to us, and return the socket's path.

    Raises OperationalError when someone else has it, or when no path is short enough.
    """
    path = socket_path(data_dir)
    if path.parent == data_dir:
        return path
    if not _is_addressable(path):
        raise OperationalError(f"{path} is too long for a socket; give FEEDPROXY_DATA_DIR a shorter path")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        found = path.parent.lstat()
        (data_dir / SOCKET_ELSEWHERE).write_bytes(os.fsencode(path))
    except OSError as error:
        raise OperationalError(f"cannot use {path.parent}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OperationalError(f"{path.parent} is not a directory that only we can use; remove it")
    return path


def _is_addressable(path: Path) -> bool:
    """Whether a socket can be bound there and named in a URL, which holds UTF-8 only."""
    encoded = os.fsencode(path)
    try:
        encoded.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return len(encoded) < _SOCKET_PATH_BYTES


def _create(data_dir: Path) -> None:
    missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
        if not data_dir.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise OperationalError(f"cannot use the data directory {data_dir}: {error.strerror}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OperationalError(f"cannot use the data directory {path.parent}: {error.strerror}") from None
    with os.fdopen(descriptor, "r+", encoding="ascii", errors="replace") as file:
        yield file

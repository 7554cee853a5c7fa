"""Salvage of a damaged append-only file: what Valkey complains of, what can be kept, and the cut.

Valkey's append-only data is a directory with a manifest that names a base (a snapshot, RDB) and one or more
incremental files (the commands since, RESP). Any damage makes Valkey refuse to start; were it to cut torn
tails by itself, a corrupt length in the middle would look like one and cost all that follows. Here the
incremental files are cut after their last whole command before the damage. Without its base an incremental
file is kept only if it holds the whole history: changes to things that no longer exist would make half jobs,
which is worse than none.

Nothing here talks to a server. Everything but `salvage` is read-only; `salvage` copies the directory first,
unless all that goes is the unfinished end that every power cut may leave.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

DIRECTORY = "appendonlydir"
MANIFEST = "appendonly.aof.manifest"
COPIES_KEPT = 3

# Valkey's own limits: what is beyond them was never written by it.
_ARGUMENTS_MAX = 1024 * 1024
_ARGUMENT_BYTES_MAX = 512 * 1024 * 1024

_FILE_NAME = re.compile(r"appendonly\.aof\.(\d+)\.(base|incr)\.(rdb|aof)")
_COMMAND_NAME = re.compile(rb"[a-z0-9._|-]{1,64}")
_COMMAND_START = re.compile(rb"\*\d{1,10}\r\n\$")
_MANIFEST_LINE = re.compile(r"file (\S+) seq (\d+) type ([bih])")

_BASE_COMPLAINTS = re.compile(
    r"Bad file format reading the append only file \S+\.base\.rdb"
    r"|Internal error in RDB reading offset|Wrong RDB checksum"
)
_COMPLAINTS = re.compile(
    r"FATAL AOF MANIFEST FILE ERROR"
    r"|Bad file format reading the append only file"
    r"|Error reading the append only file \S+, error:"
    r"|Unexpected end of file reading the append only file"
    r"|the truncated file is not the last file"
    r"|Unable to obtain the AOF file \S+ length\. stat: No such file or directory"
)
_ADVICE = re.compile(r": make a backup|\. You can: ")  # Valkey's, for those who have no salvage
_TORN = re.compile(r"Unexpected end of file reading the append only file")
_REFUSED_COMMAND = re.compile(r"unknown command '([^']+)'|wrong number of arguments for '([^']+)' command")
# Signals that a fault of its own ends a process with; SIGKILL and SIGTERM come from elsewhere.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_LOADED = re.compile(r"DB loaded from append only file|Ready to accept connections")
_LOADING = re.compile(r"Reading RDB base file on AOF loading|in anticipation of a load operation")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Why Valkey could not load its data."""

    complaint: str  # in Valkey's words
    base: bool = False  # it is the base that is damaged
    command: str | None = None  # name of a well-formed command that Valkey refuses
    torn: bool = False  # a file ends too early; or a corrupt length makes it seem so
    certain: bool = True  # False: Valkey crashed while loading, and only a look at the files can tell why


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Damage that was dealt with, for the operator to read."""

    at: float  # seconds since 1970
    complaint: str
    copy: Path | None  # where the damaged files are; None where only an unfinished end was cut off
    kept_bytes: int
    lost_bytes: int

    def __str__(self) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))
        where = "" if self.copy is None else f", the damaged files are in {_printable(self.copy)}"
        complaint = _ADVICE.split(self.complaint)[0][:200]
        return f"{at}: {complaint} ({self.kept_bytes} bytes kept, {self.lost_bytes} lost{where})"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a look through one incremental file found."""

    size_bytes: int
    whole_bytes: int  # up to the end of the last whole command outside of an unfinished transaction
    commands: int  # in that part

    @property
    def is_whole(self) -> bool:
        """Whether all of the file is well-formed."""
        return self.whole_bytes == self.size_bytes


@dataclass(frozen=True, kw_only=True)
class _File:
    """A line of the manifest."""

    name: str
    seq: int
    kind: str  # b base, i incremental

    def line(self) -> str:
        return f"file {self.name} seq {self.seq} type {self.kind}\n"


_FIRST_BASE = _File(name="appendonly.aof.1.base.rdb", seq=1, kind="b")


def diagnose(log: Sequence[str], exit_code: int) -> Damage | None:
    """Tell from the log of a Valkey that died before it was up whether its data is to blame.

    None for everything else: a full disk, a wrong option, a lack of permission or of memory.
    """
    if any(map(_LOADED.search, log)):
        return None
    for line in log:
        if _BASE_COMPLAINTS.search(line):
            return Damage(complaint=line, base=True)
    for line in log:
        if _COMPLAINTS.search(line):
            refused = _REFUSED_COMMAND.search(line)
            command = (refused[1] or refused[2]) if refused else None
            return Damage(complaint=line, command=command, torn=bool(_TORN.search(line)))
    if -exit_code in _CRASHES and any(map(_LOADING.search, log)):
        return Damage(complaint=f"crashed while loading, signal {-exit_code}", certain=False)
    return None


def look(data_dir: Path) -> Damage | None:
    """Find, before Valkey starts, the damage that it would not notice but answer with an empty database."""
    directory = data_dir / DIRECTORY
    files = _files_found(directory)
    if not files:
        return None
    if not (directory / MANIFEST).exists():
        return Damage(complaint="the append-only manifest is missing")
    base = next((file for file in _read_manifest(directory) or () if file.kind == "b"), None)
    if base is not None and base.seq > 1 and _size(directory / base.name) == 0:
        return Damage(complaint=f"{base.name} is empty", base=True)
    return None


def scan(file: BinaryIO, size_bytes: int, refused: str | None = None) -> Scan:
    """Read RESP commands from the start of `file` up to the first fault.

    `refused` is the name of a command that Valkey does not accept: the first one counts as a fault.
    """
    unwanted = refused.lower().encode() if refused else None
    position = whole = commands = pending = 0  # pending: commands of a transaction that may yet be cut
    in_transaction = False
    while position < size_bytes:
        read = _read_command(file, size_bytes - position)
        if read is None or (unwanted is not None and read[0] == unwanted):
            break
        name, length = read
        position += length
        pending += name != b"#"
        if name == b"multi":
            in_transaction = True
        elif name == b"exec":
            in_transaction = False
        if not in_transaction:
            whole, commands, pending = position, commands + pending, 0
    return Scan(size_bytes=size_bytes, whole_bytes=whole, commands=commands)


def salvage(data_dir: Path, damage: Damage, *, now: float, copy: Path | None = None) -> Incident | None:
    """Set the damaged directory aside, and leave in its place what Valkey can load.

    `copy` is where an earlier attempt of the same start has set it aside; then no other copy is made, nor is
    one of a torn tail. Returns None, having touched nothing, when the files are fine and the damage was not
    certain. Raises OSError, with the data as it was, when there is no room for the copy. Killed half-way it
    can be run again.
    """
    directory = data_dir / DIRECTORY
    had_bytes = _directory_bytes(directory)
    files = _read_manifest(directory) or _guess_manifest(directory)
    keep = _what_to_keep(directory, files, damage)
    untouched = [file for file, _ in keep] == list(files) and all(
        _size(directory / file.name) == length for file, length in keep
    )
    if untouched and not damage.certain:
        return None
    manifest_lost = _read_manifest(directory) is None
    harmless = damage.torn and not manifest_lost and _only_a_tail_goes(directory, files, keep)
    if copy is None and not harmless:
        copy = _set_aside(data_dir, now)
    if untouched and not manifest_lost:
        keep = []  # Valkey refuses what looks right to us: the copy is all we can do for it
    _cut(directory, keep)
    if copy is not None:
        _forget_old_copies(data_dir, but=copy)
    kept = sum(length for _, length in keep)
    return Incident(
        at=now, complaint=damage.complaint, copy=copy, kept_bytes=kept, lost_bytes=max(0, had_bytes - kept)
    )


def _read_command(file: BinaryIO, left_bytes: int) -> tuple[bytes, int] | None:
    """Name in lower case and length of the next command; None unless it is whole and well-formed."""
    line = file.readline(64 * 1024)
    length = len(line)
    if line.startswith(b"#") and line.endswith(b"\n"):  # an annotation, such as #TS:
        return b"#", length
    count = _number(line, b"*", _ARGUMENTS_MAX)
    if not count:
        return None
    name = b""
    for index in range(count):
        line = file.readline(64)
        size = _number(line, b"$", min(_ARGUMENT_BYTES_MAX, left_bytes - length))
        if size is None:
            return None
        argument = file.read(size + 2)
        if len(argument) != size + 2 or not argument.endswith(b"\r\n"):
            return None
        length += len(line) + size + 2
        if index == 0:
            name = argument[:-2].lower()
    return (name, length) if _COMMAND_NAME.fullmatch(name) else None


def _number(line: bytes, mark: bytes, most: int) -> int | None:
    digits = line[1:-2]
    if line[:1] != mark or line[-2:] != b"\r\n" or not digits.isdigit() or len(digits) > 10:
        return None
    number = int(digits)
    return number if number <= most else None


def _what_to_keep(directory: Path, files: Sequence[_File], damage: Damage) -> list[tuple[_File, int]]:
    """Files to keep, in order, each with the bytes to keep of it."""
    increments = [file for file in files if file.kind == "i"]
    base = next((file for file in files if file.kind == "b"), _FIRST_BASE)
    base_bytes = 0 if damage.base else _size(directory / base.name) or 0
    # The first base is the empty database that the directory began with: increments hold the whole history.
    if base_bytes == 0 and not (base.seq == 1 and increments and increments[0].seq == 1):
        return []
    keep = [(base, base_bytes)]
    for file in increments:
        size = _size(directory / file.name)
        if size is None:
            break
        with (directory / file.name).open("rb", buffering=1024 * 1024) as stream:
            found = scan(stream, size, damage.command)
        keep.append((file, found.whole_bytes))
        if not found.is_whole:
            break  # what was written later builds on what is lost
    return keep


def _only_a_tail_goes(directory: Path, files: Sequence[_File], keep: Sequence[tuple[_File, int]]) -> bool:
    """Whether all that goes is one unfinished command or transaction at the end of the last file.

    A corrupt length that points past the end looks the same, but whole commands come after it.
    """
    if not keep or [file for file, _ in keep] != list(files):
        return False
    last, position = keep[-1]
    size = _size(directory / last.name) or 0
    if position >= size:
        return False
    with (directory / last.name).open("rb") as stream:
        stream.seek(position)
        while (read := _read_command(stream, size - position)) is not None:  # the transaction's
            position += read[1]
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in _COMMAND_START.finditer(content, position + 1):
                stream.seek(match.start())
                if _read_command(stream, size - match.start()) is not None:
                    return False
    return True


def _read_manifest(directory: Path) -> list[_File] | None:
    """Files that the manifest names, base first; None when it is missing or not a manifest."""
    try:
        lines = (directory / MANIFEST).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    matches = [_MANIFEST_LINE.fullmatch(line) for line in lines if not line.startswith("#")]
    files = [_File(name=match[1], seq=int(match[2]), kind=match[3]) for match in matches if match]
    if not matches or len(files) != len(matches):
        return None
    # History (h) is what Valkey was about to delete.
    return sorted((file for file in files if file.kind != "h"), key=lambda file: (file.kind, file.seq))


def _guess_manifest(directory: Path) -> list[_File]:
    """What the manifest must have said, by the names of the files.

    A rewrite starts an incremental file before it makes its base, so that with several bases the oldest is
    still complete with every incremental file.
    """
    found = _files_found(directory)
    bases = [file for file in found if file.kind == "b"]
    return [*bases[:1], *(file for file in found if file.kind == "i")]


def _files_found(directory: Path) -> list[_File]:
    """Base and incremental files that lie in the directory, bases first, oldest first."""
    with contextlib.suppress(OSError):
        matches = [_FILE_NAME.fullmatch(name) for name in os.listdir(directory)]  # noqa: PTH208 - names only
        files = [_File(name=match[0], seq=int(match[1]), kind=match[2][0]) for match in matches if match]
        return sorted(files, key=lambda file: (file.kind, file.seq))
    return []


def _set_aside(data_dir: Path, now: float) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    copy = data_dir / f"{DIRECTORY}.damaged-{stamp}"
    number = 1
    while copy.exists():
        number += 1
        copy = data_dir / f"{DIRECTORY}.damaged-{stamp}-{number}"
    partial = data_dir / f"{DIRECTORY}.copying"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(data_dir / DIRECTORY, partial)
        partial.rename(copy)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return copy


def _cut(directory: Path, keep: Sequence[tuple[_File, int]]) -> None:
    """Bring the directory to what is kept; at every step it loads, or is found damaged again."""
    if not keep:
        discarded = directory.with_name(f"{DIRECTORY}.discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        directory.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
        return
    for file, length in keep:
        with (directory / file.name).open("ab") as stream:
            stream.truncate(length)
            os.fsync(stream.fileno())
    manifest = directory / f"temp-{MANIFEST}"
    manifest.write_text("".join(file.line() for file, _ in keep), encoding="ascii")
    manifest.replace(directory / MANIFEST)
    named = {file.name for file, _ in keep}
    for file in _files_found(directory):
        if file.name not in named:
            (directory / file.name).unlink()


def _forget_old_copies(data_dir: Path, *, but: Path) -> None:
    # By name, which is by date; the newest is spared whatever the clock said when it got its name.
    old = sorted(copy for copy in data_dir.glob(f"{DIRECTORY}.damaged-*") if copy != but)
    for copy in old[: len(old) - (COPIES_KEPT - 1)] if len(old) >= COPIES_KEPT else []:
        shutil.rmtree(copy, ignore_errors=True)


def _printable(path: Path) -> str:
    """The path as text that any encoder takes, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _directory_bytes(directory: Path) -> int:
    return sum(_size(directory / file.name) or 0 for file in _files_found(directory))

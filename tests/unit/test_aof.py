"""Salvage of a damaged append-only file, on files made by hand."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.store import aof
from proxy.store.aof import Damage

NOW = 1_795_325_653.0
LOADING = "1:M 22 Nov 2026 05:34:37.881 * Cleaning slot migration log in anticipation of a load operation."


def command(*arguments: bytes) -> bytes:
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in arguments)
    return b"*%d\r\n%s" % (len(arguments), parts)


SET_A, SET_B, SET_C = (command(b"SET", key, b"value") for key in (b"a", b"b", b"c"))
MULTI, EXEC = command(b"MULTI"), command(b"EXEC")


def scan(content: bytes, refused: str | None = None) -> aof.Scan:
    return aof.scan(io.BytesIO(content), len(content), refused)


def test_a_whole_file_is_whole():
    content = SET_A + MULTI + SET_B + SET_C + EXEC
    found = scan(content)
    assert found.is_whole
    assert (found.whole_bytes, found.commands) == (len(content), 5)


@pytest.mark.parametrize(
    "fault",
    [
        b"garbage\r\n",
        b"\0" * 512,
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nval",  # torn
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$99999999999\r\nv\r\n",  # a length beyond the file
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\nvalue\r\n",  # a length too short
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$6\r\nvalue\r\n",  # a length too long
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$-1\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"*99999999\r\n",
        b"*3\r$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n",
        b"*1\r\n$3\r\nS\0T\r\n",
        MULTI + SET_B,  # a transaction that never ended
        MULTI + SET_B + b"garbage",
    ],
)
def test_what_comes_before_a_fault_is_kept(fault):
    found = scan(SET_A + SET_B + fault + SET_C[:0])
    assert not found.is_whole
    assert (found.whole_bytes, found.commands) == (len(SET_A + SET_B), 2)


def test_what_comes_after_a_fault_is_not_looked_at():
    assert scan(SET_A + b"garbage\r\n" + SET_B).whole_bytes == len(SET_A)


def test_a_command_that_valkey_refuses_is_a_fault():
    assert scan(SET_A + command(b"SeX", b"b") + SET_C, "SEX").whole_bytes == len(SET_A)


def test_annotations_are_no_commands():
    content = b"#TS:1795325653\r\n" + SET_A
    found = scan(content)
    assert found.is_whole
    assert found.commands == 1


words = st.lists(st.binary(max_size=20), max_size=3).map(lambda rest: command(b"SET", *rest))


@given(st.lists(words, max_size=8), st.data())
def test_cutting_anywhere_keeps_every_command_before_the_cut(commands: Sequence[bytes], data: st.DataObject):
    content = b"".join(commands)
    cut = data.draw(st.integers(0, len(content)))
    ends = [sum(map(len, commands[:count])) for count in range(len(commands) + 1)]
    found = scan(content[:cut])
    assert found.whole_bytes == max(end for end in ends if end <= cut)
    assert found.commands == ends.index(found.whole_bytes)


@given(st.binary(max_size=200))
def test_any_bytes_can_be_scanned_and_what_is_kept_is_whole(content: bytes):
    kept = scan(content).whole_bytes
    assert scan(content[:kept]).is_whole


@pytest.mark.parametrize(
    ("line", "base", "name"),
    [
        (
            "# Bad file format reading the append only file appendonly.aof.1.incr.aof: make a backup",
            False,
            None,
        ),
        (
            "# Bad file format reading the append only file appendonly.aof.1.base.rdb: make a backup",
            True,
            None,
        ),
        ("# Error reading the append only file a.aof, error: unknown command 'SEX', with", False, "SEX"),
        (
            "# Error reading the append only file a, error: wrong number of arguments for 'get' command",
            False,
            "get",
        ),
        ("# Wrong RDB checksum expected: (a5ef) but got (d5c2). Aborting now.", True, None),
        ("# Internal error in RDB reading offset 0, function at rdb.c:3632 -> Unexpected EOF", True, None),
        ("*** FATAL AOF MANIFEST FILE ERROR ***", False, None),
        (
            "# Unable to obtain the AOF file a.aof length. stat: No such file or directory",
            False,
            None,
        ),
        ("# Fatal error: the truncated file is not the last file", False, None),
    ],
)
def test_complaints_about_the_data_are_damage(line, base, name):
    assert aof.diagnose([LOADING, line], 1) == Damage(complaint=line, base=base, command=name)


@pytest.mark.parametrize(
    "line",
    [
        "*** FATAL CONFIG FILE ERROR (Version 9.1.2) ***",
        "# Unable to obtain the AOF file a.aof length. stat: Permission denied",
        "# Can't open or create append-only dir appendonlydir: No space left on device",
        "# Unrecoverable error reading the append only file a.aof: Input/output error",
        "# Failed opening Unix socket: bind: Address already in use",
        "# Can't handle RDB format version 990",
    ],
)
def test_complaints_about_anything_else_are_not(line):
    assert aof.diagnose([LOADING, line], 1) is None


def test_a_crash_while_loading_may_be_damage():
    damage = aof.diagnose([LOADING, "# Guru Meditation"], -signal.SIGSEGV)
    assert damage is not None
    assert not damage.certain
    assert aof.diagnose([LOADING, "# bye"], -signal.SIGKILL) is None
    assert aof.diagnose([LOADING, "* Ready to accept connections unix"], -signal.SIGSEGV) is None


def test_an_early_end_may_be_a_torn_tail():
    line = "# Unexpected end of file reading the append only file a.incr.aof. You can: 1) Make a backup"
    assert aof.diagnose([LOADING, line], 1) == Damage(complaint=line, torn=True)


def test_an_incident_reads_well_whatever_the_path():
    incident = aof.Incident(
        at=NOW,
        complaint="Bad file format reading the append only file a.aof: make a backup of your AOF file",
        copy=Path(os.fsdecode(b"/data/\xff")),
        kept_bytes=7,
        lost_bytes=8,
    )
    assert str(incident) == (
        "2026-11-22T05:34:13Z: Bad file format reading the append only file a.aof"
        " (7 bytes kept, 8 lost, the damaged files are in /data/\\xff)"
    )


class Data:
    """An append-only directory made by hand."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.directory = data_dir / aof.DIRECTORY
        self.directory.mkdir()

    def put(self, kind: str, seq: int, content: bytes) -> None:
        self.path(kind, seq).write_bytes(content)

    def path(self, kind: str, seq: int) -> Path:
        return self.directory / f"appendonly.aof.{seq}.{kind}.{'rdb' if kind == 'base' else 'aof'}"

    def manifest(self, *files: tuple[str, int]) -> None:
        lines = (f"file {self.path(kind, seq).name} seq {seq} type {kind[0]}\n" for kind, seq in files)
        (self.directory / aof.MANIFEST).write_text("".join(lines))

    def named(self) -> list[str]:
        return [line.split()[1] for line in (self.directory / aof.MANIFEST).read_text().splitlines()]

    def salvage(self, damage: Damage) -> aof.Incident:
        incident = aof.salvage(self.data_dir, damage, now=NOW)
        assert incident is not None
        return incident

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path)


def test_a_corrupt_middle_is_set_aside_and_cut(data):
    data.put("base", 2, b"VALKEY snapshot")
    data.put("incr", 3, SET_A + b"garbage" + SET_B)
    data.manifest(("base", 2), ("incr", 3))
    before = data.contents()

    incident = data.salvage(Damage(complaint="bad format"))

    assert data.path("incr", 3).read_bytes() == SET_A
    assert data.path("base", 2).read_bytes() == b"VALKEY snapshot"
    assert incident.copy == data.data_dir / "appendonlydir.damaged-20261122T053413Z"
    assert {path.name: path.read_bytes() for path in incident.copy.iterdir()} == before
    assert incident.kept_bytes == len(SET_A) + 15
    assert incident.lost_bytes == len(b"garbage" + SET_B)


UNFINISHED = Damage(complaint="unexpected end", torn=True)


@pytest.mark.parametrize(
    "tail",
    [
        b"*",
        b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$5\r\nval",
        b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$99\r\nlooks like *1\r\n$4\r\nbut is none",
        MULTI + SET_B,
        MULTI + SET_B + b"*3\r\n$3\r\nSE",
    ],
)
def test_of_a_torn_tail_no_copy_is_made(data, tail):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A)
    data.put("incr", 2, SET_B + tail)
    data.manifest(("base", 1), ("incr", 1), ("incr", 2))
    incident = data.salvage(UNFINISHED)
    assert data.path("incr", 2).read_bytes() == SET_B
    assert (incident.copy, incident.lost_bytes) == (None, len(tail))
    assert list(data.data_dir.iterdir()) == [data.directory]


LENGTH_PAST_THE_END = b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$9999\r\nvalue\r\n"


@pytest.mark.parametrize(
    "tail",
    [
        LENGTH_PAST_THE_END + SET_C,
        LENGTH_PAST_THE_END + b"*3\r\n$3" + SET_C[:-1] + SET_B + SET_C[:-1],
        MULTI + SET_B + LENGTH_PAST_THE_END + EXEC,
    ],
)
def test_what_looks_torn_but_has_whole_commands_in_it_is_set_aside(data, tail):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A + tail)
    data.manifest(("base", 1), ("incr", 1))
    incident = data.salvage(UNFINISHED)
    assert data.path("incr", 1).read_bytes() == SET_A
    assert (incident.copy / data.path("incr", 1).name).read_bytes() == SET_A + tail


def test_a_torn_file_that_is_not_the_last_is_set_aside(data):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A + SET_B[:-1])
    data.put("incr", 2, SET_C)
    data.manifest(("base", 1), ("incr", 1), ("incr", 2))
    incident = data.salvage(UNFINISHED)
    assert (incident.copy / data.path("incr", 2).name).read_bytes() == SET_C


def test_what_is_whole_although_valkey_calls_it_torn_is_set_aside(data):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A)
    data.manifest(("base", 1), ("incr", 1))
    assert data.salvage(UNFINISHED).copy is not None


def test_files_after_a_damaged_one_are_dropped(data):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A + b"garbage")
    data.put("incr", 2, SET_B)
    data.manifest(("base", 1), ("incr", 1), ("incr", 2))
    data.salvage(Damage(complaint="bad format"))
    assert data.named() == [data.path("base", 1).name, data.path("incr", 1).name]
    assert not data.path("incr", 2).exists()


def test_increments_of_a_lost_base_go_with_it(data):
    data.put("base", 2, b"damaged")
    data.put("incr", 2, SET_A)
    data.manifest(("base", 2), ("incr", 2))
    incident = data.salvage(Damage(complaint="checksum", base=True))
    assert not data.directory.exists()
    assert (incident.kept_bytes, incident.lost_bytes) == (0, 7 + len(SET_A))


def test_the_first_base_is_empty_so_nothing_is_lost_with_it(data):
    data.put("base", 1, b"damaged")
    data.put("incr", 1, SET_A)
    data.manifest(("base", 1), ("incr", 1))
    data.salvage(Damage(complaint="checksum", base=True))
    assert data.path("incr", 1).read_bytes() == SET_A
    assert data.path("base", 1).read_bytes() == b""


@pytest.mark.parametrize("manifest", [None, b"", b"\0\0\0", b"file appendonly.aof.1.base.rdb seq"])
def test_a_lost_manifest_is_written_again(data, manifest):
    data.put("base", 4, b"snapshot")
    data.put("incr", 5, SET_A)
    data.put("incr", 6, SET_B)
    if manifest is not None:
        (data.directory / aof.MANIFEST).write_bytes(manifest)
    data.salvage(Damage(complaint="manifest"))
    assert data.named() == [data.path("base", 4).name, data.path("incr", 5).name, data.path("incr", 6).name]
    assert data.path("incr", 6).read_bytes() == SET_B


def test_history_does_not_come_back(data):
    data.put("base", 2, b"snapshot")
    data.put("incr", 1, SET_A)
    data.put("incr", 2, SET_B + b"garbage")
    data.manifest(("base", 2), ("incr", 2))
    with (data.directory / aof.MANIFEST).open("a") as manifest:
        manifest.write(f"file {data.path('incr', 1).name} seq 1 type h\n")
    data.salvage(Damage(complaint="bad format"))
    assert data.named() == [data.path("base", 2).name, data.path("incr", 2).name]


def test_what_is_well_formed_but_refused_for_no_known_reason_is_only_copied(data):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A)
    data.manifest(("base", 1), ("incr", 1))
    incident = data.salvage(Damage(complaint="who knows"))
    assert not data.directory.exists()
    assert incident.copy is not None
    assert (incident.copy / data.path("incr", 1).name).read_bytes() == SET_A


def test_a_crash_that_the_data_does_not_explain_touches_nothing(data):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A)
    data.manifest(("base", 1), ("incr", 1))
    before = data.contents()
    assert aof.salvage(data.data_dir, Damage(complaint="crash", certain=False), now=NOW) is None
    assert data.contents() == before
    assert list(data.data_dir.iterdir()) == [data.directory]


def test_the_newest_copies_are_kept(data):
    for day in range(5):
        data.directory.mkdir(exist_ok=True)
        data.put("base", 1, b"")
        data.put("incr", 1, SET_A + b"garbage %d" % day)
        data.manifest(("base", 1), ("incr", 1))
        aof.salvage(data.data_dir, Damage(complaint="bad"), now=NOW + 86_400 * (day if day < 4 else -1))
    kept = sorted(copy.name for copy in data.data_dir.glob("*.damaged-*"))
    # The last one, made after the clock was set back, is kept although its name is the oldest.
    assert [name.removeprefix("appendonlydir.damaged-") for name in kept] == [
        "20261121T053413Z",
        "20261124T053413Z",
        "20261125T053413Z",
    ]


def test_torn_tails_do_not_push_out_copies(data):
    for day in range(aof.COPIES_KEPT + 1):
        data.directory.mkdir(exist_ok=True)
        data.put("base", 1, b"")
        data.put("incr", 1, SET_A + (b"garbage" if day == 0 else SET_B[:-1]))
        data.manifest(("base", 1), ("incr", 1))
        damage = Damage(complaint="bad") if day == 0 else UNFINISHED
        aof.salvage(data.data_dir, damage, now=NOW + 86_400 * day)
    assert [copy.name for copy in data.data_dir.glob("*.damaged-*")] == [
        "appendonlydir.damaged-20261122T053413Z"
    ]


def test_without_room_for_the_copy_nothing_is_cut(data, monkeypatch):
    data.put("base", 1, b"")
    data.put("incr", 1, SET_A + b"garbage")
    data.manifest(("base", 1), ("incr", 1))
    before = data.contents()

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aof.shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        aof.salvage(data.data_dir, Damage(complaint="bad"), now=NOW)
    assert data.contents() == before


def test_damage_that_valkey_would_not_notice(data):
    assert aof.look(data.data_dir) is None  # an empty directory is a new one
    data.put("base", 2, b"snapshot")
    data.put("incr", 2, SET_A)
    assert aof.look(data.data_dir) == Damage(complaint="the append-only manifest is missing")
    data.manifest(("base", 2), ("incr", 2))
    assert aof.look(data.data_dir) is None
    data.put("base", 2, b"")
    assert aof.look(data.data_dir) == Damage(complaint="appendonly.aof.2.base.rdb is empty", base=True)

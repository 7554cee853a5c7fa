"""The private Valkey and its data: every damage is made for real and met by the real server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import structlog

from integration.processes import is_running
from proxy.errors import OperationalError
from proxy.store import aof, orphan
from proxy.store.datadir import data_dir_lock, prepare_socket_dir, socket_path
from proxy.store.embedded import EmbeddedValkey

INCR = "appendonly.aof.1.incr.aof"
BASE = "appendonly.aof.1.base.rdb"


@contextlib.asynccontextmanager
async def running(data_dir: Path):
    """A Valkey that is up, and a client; stopped in the end."""
    valkey = EmbeddedValkey(data_dir, memory_mb=64)
    life = asyncio.create_task(valkey.run_once())
    try:
        async with asyncio.timeout(60):
            while not valkey.up:
                assert not life.done(), f"ended with {life.result()}, {valkey.incidents}"
                await asyncio.sleep(0.005)
        with redis.Redis.from_url(valkey.url) as client:
            while not loaded(client):  # noqa: ASYNC110 - it has no event to offer
                await asyncio.sleep(0.005)
            yield valkey, client
    finally:
        await valkey.stop()
        async with asyncio.timeout(60):
            await life


def loaded(client: redis.Redis) -> bool:
    try:
        return not client.info("persistence")["loading"]
    except redis.ConnectionError:  # it found the damage, died, and is about to come back
        return False


@pytest.fixture
def data_dir(tmp_path):
    with data_dir_lock(tmp_path / "data") as path:
        yield path


@pytest.fixture
async def files(data_dir):
    """The append-only directory of a Valkey in which k0 to k9 were set in that order."""
    async with running(data_dir) as (_, client):
        for number in range(10):
            client.set(f"k{number}", f"value{number}")
    return data_dir / aof.DIRECTORY


def keys(client: redis.Redis) -> list[str]:
    return sorted(key.decode() for key in client.scan_iter())


def first(count: int) -> list[str]:
    return [f"k{number}" for number in range(count)]


def copies(data_dir: Path) -> list[Path]:
    return list(data_dir.glob("*.damaged-*"))


def mode(path: Path) -> int:
    return path.stat().st_mode


def damage(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


async def test_what_was_stored_is_there_after_a_restart(files, data_dir):
    async with running(data_dir) as (valkey, client):
        assert keys(client) == first(10)
        assert valkey.incidents == []
    assert mode(files / INCR) & 0o077 == 0


@pytest.mark.parametrize("left", ["*", "*3\r\n$3\r\nSE", "all but the last 5"])
async def test_a_torn_tail_is_cut_and_told_without_a_fuss(files, data_dir, left):
    last = b"*3\r\n$3\r\nSET\r\n$2\r\nk9\r\n$6\r\nvalue9\r\n"
    content = (files / INCR).read_bytes()
    assert content.endswith(last)
    torn = last[:-5] if left.startswith("all") else left.encode()
    (files / INCR).write_bytes(content.removesuffix(last) + torn)
    with structlog.testing.capture_logs() as logs:
        async with running(data_dir) as (valkey, client):
            assert keys(client) == first(9)
            assert valkey.incidents == []
    assert [log["lost_bytes"] for log in logs if log["event"] == "valkey_tail_cut"] == [len(torn)]
    assert copies(data_dir) == []


async def test_of_a_torn_transaction_nothing_is_left(files, data_dir):
    async with running(data_dir) as (_, client):
        client.eval("for i = 1, 3 do redis.call('set', 't' .. i, 'x') end", 0)
        client.set("after", "it")
    content = (files / INCR).read_bytes()
    end = content.rindex(b"*1\r\n$4\r\nEXEC")
    (files / INCR).write_bytes(content[:end])
    async with running(data_dir) as (valkey, client):
        assert keys(client) == first(10)
        assert valkey.incidents == []
    assert copies(data_dir) == []


async def test_a_length_past_the_end_is_no_torn_tail(files, data_dir):
    damage(files / INCR, b"$6\r\nvalue5", b"$6000\r\nvalue5")
    damaged = (files / INCR).read_bytes()
    async with running(data_dir) as (valkey, client):
        assert keys(client) == first(5)
        (incident,) = valkey.incidents
        assert incident.complaint.startswith("Unexpected end of file")
        assert (incident.copy / INCR).read_bytes() == damaged


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"$6\r\nvalue5", b"garbage!\r\nvalue5"),
        (b"$6\r\nvalue5", b"$5\r\nvalue5"),
        (b"$6\r\nvalue5", b"$99999999999\r\nvalue5"),  # Valkey crashes of it
        (b"SET\r\n$2\r\nk5", b"SEX\r\n$2\r\nk5"),
        (b"SET\r\n$2\r\nk5", b"GET\r\n$2\r\nk5"),
        (b"SET\r\n$2\r\nk5", b"\0\0\0\r\n$2\r\nk5"),
    ],
)
async def test_of_a_corrupt_file_what_comes_before_is_kept(files, data_dir, old, new):
    damage(files / INCR, old, new)
    damaged = (files / INCR).read_bytes()
    async with running(data_dir) as (valkey, client):
        assert keys(client) == first(5)
        (incident,) = valkey.incidents
        assert (incident.copy / INCR).read_bytes() == damaged
        client.set("after", "repair")
    async with running(data_dir) as (valkey, client):
        assert keys(client) == ["after", *first(5)]
        assert valkey.incidents == []


async def test_zeros_at_the_end_as_power_cuts_leave_them_cost_nothing(files, data_dir):
    with (files / INCR).open("ab") as file:
        file.write(bytes(4096))
    async with running(data_dir) as (valkey, client):
        assert keys(client) == first(10)
        assert valkey.incidents[0].lost_bytes == 4096


@pytest.mark.parametrize("manifest", [None, b"", b"\0" * 88, b"file appendonly.aof.1.ba"])
async def test_a_damaged_manifest_costs_nothing(files, data_dir, manifest):
    (files / aof.MANIFEST).unlink()
    if manifest is not None:
        (files / aof.MANIFEST).write_bytes(manifest)
    async with running(data_dir) as (valkey, client):
        assert keys(client) == first(10)
        assert len(valkey.incidents) == 1


async def test_a_damaged_first_base_costs_nothing(files, data_dir):
    damage(files / BASE, b"valkey-ver", b"valkex-ver")
    async with running(data_dir) as (valkey, client):
        assert keys(client) == first(10)
        assert len(valkey.incidents) == 1
        await rewrite(client)  # and the next base is not taken for the first one
        assert (files / "appendonly.aof.2.base.rdb").exists()


async def rewrite(client: redis.Redis) -> None:
    client.bgrewriteaof()
    async with asyncio.timeout(60):
        while client.info("persistence")["aof_rewrite_in_progress"]:  # noqa: ASYNC110 - it has no event to offer
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing"])
async def test_a_damaged_base_is_set_aside_with_what_builds_on_it(files, data_dir, how):
    async with running(data_dir) as (_, client):
        await rewrite(client)
        client.set("later", "change")
    base = files / "appendonly.aof.2.base.rdb"
    content = base.read_bytes()
    how_to = {"flipped": content.replace(b"value5", b"valuf5"), "cut": content[:-20], "empty": b""}
    if how in how_to:
        base.write_bytes(how_to[how])
    else:
        base.unlink()
    async with running(data_dir) as (valkey, client):
        assert keys(client) == []
        (incident,) = valkey.incidents
        assert incident.kept_bytes == 0
        assert b"later" in (incident.copy / "appendonly.aof.2.incr.aof").read_bytes()


async def test_manifest_and_base_damaged_at_once(files, data_dir):
    async with running(data_dir) as (_, client):
        await rewrite(client)
    damage(files / "appendonly.aof.2.base.rdb", b"value5", b"valuf5")
    (files / aof.MANIFEST).write_bytes(b"")
    async with running(data_dir) as (valkey, client):
        assert keys(client) == []
        assert len(valkey.incidents) == 2
        assert len({incident.copy for incident in valkey.incidents}) == 1  # the first one has everything


@pytest.mark.parametrize("trouble", ["appendonlydir", "appendonlydir/" + INCR])
async def test_other_troubles_leave_the_data_alone(files, data_dir, trouble):
    """A file system that does not do as asked, played by a file for a directory and the other way round."""
    path = data_dir / trouble
    path.rename(path.with_name("elsewhere"))
    if path.parent == data_dir:
        path.touch()
    else:
        path.mkdir()
    before = sorted(data_dir.rglob("*"))
    valkey = EmbeddedValkey(data_dir, memory_mb=64)
    async with asyncio.timeout(60):
        assert await valkey.run_once() == 1
    assert valkey.incidents == []
    files_of_its_own = {"valkey.pid", "valkey.sock"}
    assert [path for path in sorted(data_dir.rglob("*")) if path.name not in files_of_its_own] == before


HOLD_THE_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_a_process_that_is_not_ours_is_never_signalled(data_dir, monkeypatch):
    monkeypatch.setattr(orphan, "PATIENCE_S", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(data_dir / "valkey.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=data_dir,
    ) as stranger:
        assert stranger.stdout.readline() == b"held\n"
        (data_dir / "valkey.pid").write_text(f"{stranger.pid}\n")
        # No start, rather than two servers on one file.
        assert asyncio.run(EmbeddedValkey(data_dir, memory_mb=64).run_once()) is None
        assert is_running(stranger.pid)
        stranger.communicate(b"\n")
        assert stranger.returncode == 0


async def test_a_stop_while_an_orphan_is_being_ended_is_heard(data_dir):
    with (data_dir / "valkey.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        valkey = EmbeddedValkey(data_dir, memory_mb=64)
        life = asyncio.create_task(valkey.run_once())
        await asyncio.sleep(0)
        await valkey.stop()
        async with asyncio.timeout(3):
            assert await life is None


def test_the_socket_of_a_deep_directory_is_the_same_in_every_environment(tmp_path, monkeypatch):
    data_dir = tmp_path / ("deep" * 30)
    data_dir.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    short = Path("/tmp") / f"fp{os.getpid()}"
    short.mkdir(mode=0o700)
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        chosen = prepare_socket_dir(data_dir)
        assert chosen.parent.parent == short
        assert chosen.parent.stat().st_mode & 0o777 == 0o700
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert socket_path(data_dir) == chosen
        chosen.parent.chmod(0o755)
        with pytest.raises(OperationalError, match="only we can use"):
            prepare_socket_dir(data_dir)
        chosen.parent.rmdir()
        (short / "elsewhere").mkdir(mode=0o700)
        chosen.parent.symlink_to(short / "elsewhere")
        with pytest.raises(OperationalError, match="only we can use"):
            prepare_socket_dir(data_dir)
        chosen.parent.unlink()
        (short / "elsewhere").rmdir()
    finally:
        short.rmdir()

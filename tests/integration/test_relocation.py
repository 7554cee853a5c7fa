"""Another store for the queue, and a backup of the one there is, as operators do it: with the commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.pds import Directory, PdsServer
from harness.redis_servers import redis_server
from harness.waiting import until_true
from harness.workers import nursery_in
from integration.deployment import AccountOfTest, Deployment
from integration.processes import ServeProcess, environment
from integration.publishing import ALICE, BOB, PASSWORD
from proxy.store.residence import Residence

POSTS = 100
WRONG = "not the password of bob"


@pytest.fixture(scope="module")
def server():
    with redis_server("redis-6.2") as running:
        yield running


@pytest.fixture(scope="module")
def nursery():
    with tempfile.TemporaryDirectory(prefix="fp-") as directory, nursery_in(Path(directory)) as running:
        yield running


@pytest.fixture
async def pds():
    async with Directory() as directory, PdsServer(directory) as server:
        server.host(ALICE, "alice.test", PASSWORD)
        server.host(BOB, "bob.test", PASSWORD)
        yield server


class Office:
    """An installation whose store may be another each time it is open. Its calls block."""

    def __init__(self, tmp_path, nursery, pds):
        self.tmp_path = tmp_path
        self.data_dir = tmp_path / "data"
        self._nursery = nursery
        self._pds = pds

    @contextlib.contextmanager
    def open(self, bobs_password=PASSWORD, **settings):
        accounts = [
            AccountOfTest(name="alice", identifier="alice.test", password=PASSWORD),
            AccountOfTest(name="bob", identifier="bob.test", password=bobs_password),
        ]
        directory = self._pds.directory.url
        with Deployment(
            self.tmp_path, self._nursery, accounts, PLC_URL=directory, UPSTREAM=directory, **settings
        ) as deployment:
            if "REDIS_URL" not in settings:
                deployment.serve.wait_event("valkey_up")
            yield deployment
            if deployment.serve.exit_code() is None:
                assert deployment.serve.terminate() == 0

    def command(self, *arguments, **settings):
        """A command of ours, as it ended."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "proxy.cli", *arguments],
            env=environment(self.data_dir, **settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def refused(self, **settings):
        """What `serve` says when it does not start."""
        with ServeProcess(self.data_dir, **settings) as serve:
            assert serve.wait() == 1
            return serve.log_text()


@pytest.fixture
def office(tmp_path, nursery, pds):
    return Office(tmp_path, nursery, pds)


def fill(deployment):
    """Posts that are on alice's account, and as many that wait for the right password of bob's."""
    done = [deployment.post(f"a{number}", accounts=["alice"]) for number in range(5)]
    waiting = [deployment.post(f"b{number}", accounts=["bob"]) for number in range(POSTS)]
    for job in done:
        assert deployment.ended(job)["status"] == "completed"
    deployment.waits_for(waiting[0], "credentials")
    return done, waiting


def all_completed(deployment, jobs):
    for job in jobs:
        shown = deployment.ended(job)
        assert shown["status"] == "completed", shown


def published(pds, did):
    """Each text, as often as it was written there, deleted ones included."""
    assert len(pds.posts(did)) == len([commit for commit in pds.commits if commit[0] == did])
    return sorted(post["text"].splitlines()[0] for post in pds.posts(did))


# Several starts of everything: more than one test's share on a busy machine.
@pytest.mark.timeout(300)
async def test_100_waiting_posts_go_to_a_redis_and_on_to_the_next_store(office, server, pds):
    redis_settings = {"REDIS_URL": server.url}

    def scenario():
        with office.open(WRONG) as deployment:
            done, waiting = fill(deployment)
            early = office.command("move", **redis_settings)
            assert early.returncode == 1
            assert f"in use by feedproxy serve, pid {deployment.serve.pid}" in early.stderr
        logins = len(pds.calls("createSession"))
        refusal = office.refused(**redis_settings)
        assert f"the queue has been in embedded so far, and the settings name {server.url}" in refusal
        assert f"{POSTS} posts that wait" in refusal
        assert "feedproxy move --from embedded" in refusal
        moved = office.command("move", "--json", **redis_settings)
        assert moved.returncode == 0, moved.stderr
        assert json.loads(moved.stdout)["waiting"] == POSTS
        with office.open(WRONG, **redis_settings) as deployment:
            worker = deployment.worker()
            job = deployment.post("a-later", accounts=["alice"])
            all_completed(deployment, [*done, job])
            again = deployment.post("a0", accounts=["alice"])
            assert again["id"] == done[0]["id"], "the same post, as before"
            worker.stop()  # well: of one that is killed it is not known for a while that it is dead
        assert len(pds.calls("createSession")) <= logins + 1, "alice's session came along"
        assert f"the queue has been in {server.url}" in office.refused()
        moved = office.command("move")
        assert moved.returncode == 0, moved.stderr
        assert moved.stdout.startswith("embedded has it all now: ")
        with office.open() as deployment:
            all_completed(deployment, waiting)

    await asyncio.to_thread(scenario)
    assert published(pds, BOB) == sorted(f"Post b{number}" for number in range(POSTS))
    assert len(published(pds, ALICE)) == 6


def guide(section):
    """The shell commands in a section of the operators' guide."""
    text = (Path(__file__).parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")
    part = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", part, re.DOTALL)


@pytest.mark.timeout(300)
async def test_a_restored_backup_loses_nothing_and_repeats_nothing(office, pds):
    places = {
        "/var/lib/private/feedproxy": office.data_dir,
        "/var/backups/feedproxy.tar.gz": office.tmp_path / "backup.tar.gz",
    }

    def do(commands):
        for place, here in places.items():
            commands = commands.replace(place, str(here))
        commands = re.sub(r"^systemctl .*$", "", commands, flags=re.MULTILINE)
        done = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    back_up, restore = guide("Backup")

    def scenario():
        with office.open(WRONG) as deployment:
            _, waiting = fill(deployment)
            do(back_up)
        # What is published after the backup was made is there when it is restored.
        with office.open() as deployment:
            all_completed(deployment, waiting[:30])
            deployment.serve.kill()
        until_true(lambda: not _valkey_of(office.data_dir), "its Valkey has gone")
        do(restore)
        with office.open() as deployment:
            all_completed(deployment, waiting)

    await asyncio.to_thread(scenario)
    assert published(pds, BOB) == sorted(f"Post b{number}" for number in range(POSTS))
    assert len(published(pds, ALICE)) == 5


async def test_a_store_may_be_left_behind_and_a_wrong_path_is_one_line(office, server, tmp_path):
    def scenario():
        office.data_dir.mkdir()
        Residence(office.data_dir).note("redis://127.0.0.1:1/0")
        assert "what may still wait" in office.refused()
        wrong = office.command("move", "--from", "file:/no/such/file")
        assert (wrong.returncode, wrong.stderr) == (2, "feedproxy: /no/such/file cannot be read\n")
        assert office.command("move", "--abandon").returncode == 0
        with office.open() as deployment:
            assert deployment.serve.get("/livez")[0] == 200

    await asyncio.to_thread(scenario)


def _valkey_of(data_dir):
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"valkey-" in (process / "cmdline").read_bytes() and (process / "cwd").samefile(data_dir):
                return process.name
    return None

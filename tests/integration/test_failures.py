"""What becomes of posts that fail, as a CMS and an operator see it: through `serve` and a worker process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
from pathlib import Path

import pytest

from harness.pds import Directory, PdsServer
from harness.queue import QueueOfTest
from harness.redis_servers import redis_server
from harness.upstream import xrpc_error
from harness.waiting import until
from harness.workers import nursery_in
from integration.deployment import AccountOfTest, Deployment
from integration.publishing import ALICE, PASSWORD

RETRIES_S = (0.06, 0.12, 0.3)


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


@pytest.fixture(scope="module")
def nursery():
    with tempfile.TemporaryDirectory(prefix="fp-") as directory, nursery_in(Path(directory)) as running:
        yield running


@pytest.fixture
async def pds():
    async with Directory() as directory, PdsServer(directory) as server:
        server.host(ALICE, "alice.test", PASSWORD)
        yield server


class Room:
    """A deployment whose calls are made beside the loop, in which its PDS answers."""

    def __init__(self, deployment: Deployment, stored: QueueOfTest) -> None:
        self.deployment = deployment
        self.stored = stored

    def __getattr__(self, name):
        call = getattr(self.deployment, name)

        async def beside_the_loop(*args, **kwargs):
            return await asyncio.to_thread(call, *args, **kwargs)

        return beside_the_loop

    def delivery(self, job):
        """What is stored of the job's one delivery."""
        return self.stored.hash(f"d:{job['id']}:main")


@pytest.fixture
def opened(pds, server, nursery, tmp_path):
    """Open a room with settings of the test's own."""

    @contextlib.asynccontextmanager
    async def opening(*, password=PASSWORD, sites=("blog",), **settings):
        deployment = Deployment(
            tmp_path,
            nursery,
            [AccountOfTest(name="main", identifier="alice.test", password=password)],
            sites=sites,
            REDIS_URL=server.url,
            NAMESPACE=tmp_path.name,
            PLC_URL=pds.directory.url,
            UPSTREAM=pds.directory.url,
            SYNDICATION_RETRY_DELAYS=",".join(map(str, RETRIES_S)),
            **settings,
        )
        stored = QueueOfTest(server.url, tmp_path.name)
        await asyncio.to_thread(deployment.__enter__)
        try:
            deployment.worker()
            yield Room(deployment, stored)
        finally:
            await asyncio.to_thread(deployment.__exit__, None, None, None)
            stored.close()

    return opening


async def test_after_its_retries_a_post_has_failed_with_a_history_and_may_be_tried_again(opened, pds):
    pds.chaos = lambda call: xrpc_error(503, "Oops", "no room") if call.name == "putRecord" else None
    async with opened(ACCOUNT_BREAKER_THRESHOLD=100) as room:
        failed = await room.ended(await room.post(1))
        (account,) = failed["accounts"]
        assert (account["status"], account["attempts"]) == ("failed", 4)
        assert "503 Oops" in account["error"]
        assert len(pds.calls("putRecord")) == 4
        asked_at = [call.at for call in pds.calls("putRecord")]
        waited_s = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
        assert all(waited >= delay for waited, delay in zip(waited_s, RETRIES_S, strict=True))
        assert room.delivery(failed)["history"].count("503 Oops") == 4
        assert set(room.stored.scores("dead")) == {f"{failed['id']}:main"}

        pds.chaos = lambda call: None
        answer = await room.retry(failed)
        assert answer.status_code == 202
        done = await room.ended(failed)
        assert done["status"] == "completed"
        assert len(pds.posts(ALICE)) == 1
        assert room.stored.faults() == []


async def test_what_the_pds_refuses_fails_at_once_and_holds_up_nobody(opened, pds):
    refused = xrpc_error(400, "InvalidRequest", "Invalid app.bsky.feed.post record at $.record.text")
    bad = lambda call: call.name == "putRecord" and b"Bad" in call.body  # noqa: E731
    pds.chaos = lambda call: refused if bad(call) else None
    async with opened(sites=("blog", "news")) as room:
        posts = [await room.post(number, title="Bad") for number in range(3)]
        failed = [await room.ended(post) for post in posts]
        for job in failed:
            (account,) = job["accounts"]
            assert (account["status"], account["attempts"]) == ("failed", 1)
            assert "InvalidRequest" in account["error"]
        assert len(pds.calls("putRecord")) == 3
        done = await room.ended(await room.post(1, site="news"), site="news")
        assert done["status"] == "completed"
        kept = room.stored.hash("account:main")
        assert not {"failures", "broken", "gate_until_ms"} & kept.keys()


async def test_a_wrong_password_parks_and_the_right_one_unparks_without_a_login_more(opened, pds):
    async with opened(password="not the one") as room:
        jobs = [await room.post(number) for number in range(3)]
        for job in jobs:
            shown = await room.waits_for(job, "credentials")
            assert (shown["status"], shown["accounts"][0]["attempts"]) == ("pending", 0)
        assert "AuthenticationRequired" in (await room.job(jobs[0]))["accounts"][0]["error"]
        assert len(pds.calls("createSession")) == 1
        # Neither more posts, nor another worker with the same password, nor a reload of it ask again.
        more = await room.post(3)
        room.deployment.worker()
        await until(lambda: len(room.stored.scores("workers")) == 2)
        await room.waits_for(more, "credentials")
        await room.change_password("main", "not the one")
        await until(
            lambda: all(len(worker.events("reloaded")) == 1 for worker in room.deployment.workers),
        )
        assert len(pds.calls("createSession")) == 1

        await room.change_password("main", PASSWORD)
        for job in (*jobs, more):
            assert (await room.ended(job))["status"] == "completed"
        assert len(pds.calls("createSession")) == 2
        assert len(pds.posts(ALICE)) == 4


async def test_a_worker_that_is_told_to_reload_while_it_starts_does_so_when_it_can(opened, tmp_path):
    config, held, real = tmp_path / "feedproxy.toml", tmp_path / "held", tmp_path / "real"
    async with opened() as room:
        await until(lambda: room.stored.scores("workers"))
        config.rename(real)
        os.mkfifo(config)
        held.hardlink_to(config)
        worker = room.deployment.worker()
        # It opens the file, and waits for what is in it.
        with await asyncio.to_thread(held.open, "w") as pipe:
            worker.reload()
            tenants = real.read_text(encoding="utf-8")
            real.rename(config)
            pipe.write(tenants)
        await until(lambda: worker.events("reloaded"))
        await until(lambda: len(room.stored.scores("workers")) == 2)

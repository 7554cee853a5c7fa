"""A site brings in all it ever wrote: it goes out at its pace, and holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets

import pytest

from harness.intake import NEWS, SECRETS, TENANTS, WIDE
from harness.queue import POLICY, NothingFound, QueueOfTest
from harness.waiting import until
from integration.test_intake_queue import office_on
from proxy.clock import SystemClock
from proxy.syndication.accounts import load_accounts
from proxy.syndication.worker import Worker, WorkerPolicy

POSTS, AN_HOUR = 5000, 60
DID = "did:plc:side"


@pytest.fixture
async def office(store):
    async with office_on(store.url, store.namespace) as office:
        yield office


@contextlib.asynccontextmanager
async def working(queue, publish):
    worker = Worker(
        queue,
        publish,
        lambda: {"side": "fp"},
        SystemClock(),
        WorkerPolicy(concurrency=4, lease_s=POLICY.lease_s),
        name=secrets.token_hex(8),
        draw=random.Random(1).random,
        errands=NothingFound(queue),
    )
    running = asyncio.create_task(worker.run())
    yield
    worker.stop()
    await running


async def bring_in(office):
    """All posts of the site, in batches."""
    numbers = range(POSTS)
    for start in range(0, POSTS, 100):
        posts = [
            office.post(id=f"{number}", accounts=["side"], title=f"Import {number}")
            for number in numbers[start : start + 100]
        ]
        answer = await office.send(posts, path="/syndicate/batch", token=WIDE)
        assert {result["status"] for result in answer.json()["results"]} == {202}


@pytest.mark.timeout(600)
async def test_an_import_goes_at_its_pace_and_holds_up_nobody(office, store, world):
    account = world.pds.host(DID, "side.test", SECRETS["SIDE_PASSWORD"])
    publisher = world.host(accounts=load_accounts(TENANTS, SECRETS))
    stored = QueueOfTest(store.url, store.namespace)

    def published(title):
        return [text for text in (value["text"] for value, _ in account.records.values()) if title in text]

    await bring_in(office)
    assert stored.states() == {"ready": AN_HOUR, "delayed": POSTS - AN_HOUR}
    now_ms = stored.redis.time()[0] * 1000
    due_ms = sorted(stored.scores("delayed").values())
    assert all(due_ms[i + AN_HOUR] - due_ms[i] >= 3_600_000 for i in range(len(due_ms) - AN_HOUR))
    assert due_ms[-1] - now_ms < POSTS / AN_HOUR * 3_600_000

    # All that is left of it has become due while the account was paused.
    await office.desk.pause("side", paused=True)
    stored.let_time_pass(POSTS / AN_HOUR * 3600)
    while stored.redis.zcard(stored.key("delayed")):
        await office.desk.promote()
    first = office.post(id="first", url="https://news.example/", title="News")
    assert (await office.send(first, token=NEWS)).status_code == 202
    await office.desk.pause("side", paused=False)
    async with working(office.desk, publisher.publish):
        await until(lambda: published("News"), deadline_s=100)
        before = len(published("Import"))
    assert before <= 4, "it stands in the second place, and what is under way meanwhile comes to its end"
    assert stored.states()["dead"] == 0
    stored.redis.close()

"""The worker: whatever exchange goes wrong, nothing is lost, nothing sent twice, and all comes to its end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import structlog.testing
from pydantic import SecretStr

from harness.faulty_store import FaultyStore
from harness.queue import POLICY, QueueOfTest, queue_on, sound_queue, submission
from harness.redis_servers import redis_server
from harness.waiting import until
from proxy.clock import SystemClock
from proxy.errors import StoreUnavailable
from proxy.store.queue_store import connect_queue
from proxy.syndication.attempt import Credentials, Permanent, Published, Transient, Wait
from proxy.syndication.queue import JobQueue
from proxy.syndication.worker import Worker, WorkerPolicy

QUICK = replace(POLICY, lease_s=0.6, retry_delays_s=(0.02, 0.02, 0.02), breaker_cooldown_s=0.05)


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


@pytest.fixture
def stored(server):
    with sound_queue(server.url) as own:
        yield own


class Pds:
    """Accounts that keep what is published: one record at each key, as a PDS does it."""

    def __init__(self):
        self.records = Counter()
        self.writes = Counter()
        self.calls = []
        self.answer = None

    async def __call__(self, delivery, post, lease):
        self.calls.append(delivery.id)
        if self.answer is not None:
            outcome = await self.answer(delivery, post, lease)
            if outcome is not None:
                return outcome
        await lease.intend(b'{"text":"x"}', "cid", f"rkey-{post.id}", did="did:plc:x", generation=0)
        key = (delivery.account, post.id)
        found = key in self.writes
        self.writes[key] += 1
        self.records[key] = 1
        return Published(uri=f"at://{delivery.account}/{post.id}", cid="cid", found=found)


@contextlib.asynccontextmanager
async def working(
    queue, publish, *accounts, name="w1", concurrency=4, policy=QUICK, fingerprint="fp", grace_s=7.0
):
    """A worker at work, stopped at the end."""
    known = dict.fromkeys(accounts or ("main",), fingerprint)
    worker = Worker(
        queue,
        publish,
        lambda: known,
        SystemClock(),
        WorkerPolicy(concurrency=concurrency, lease_s=policy.lease_s, grace_s=grace_s),
        name=name,
        draw=random.Random(1).random,
    )
    worker.known = known
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


async def all_over(stored, count=1):
    """Wait until so many deliveries are done."""
    await until(lambda: stored.states() == {"done": count})


async def test_it_works_through_what_is_there_and_what_comes(stored):
    pds = Pds()
    async with queue_on(stored.url, stored.namespace, QUICK) as queue:
        for number in range(20):
            await queue.enqueue(submission(f"early-{number}", accounts=("main", "other")))
        async with working(queue, pds, "main", "other"):
            for number in range(20):
                await queue.enqueue(submission(f"late-{number}", accounts=("main", "other")))
            await all_over(stored, 80)
    assert set(pds.writes.values()) == {1}
    assert len(pds.writes) == 80
    assert stored.redis.xlen(stored.key("bells")) == 0
    assert stored.scores("workers") == {}


async def test_the_log_tells_what_became_of_each_attempt(stored):
    pds, failures = (
        Pds(),
        [
            Transient(reason="503", counts_for_breaker=False),
            Permanent(reason="no such thing"),
        ],
    )

    async def answer(delivery, _post, _lease):
        return failures.pop(0) if delivery.account == "main" and failures else None

    pds.answer = answer
    with structlog.testing.capture_logs() as logs:
        async with queue_on(stored.url, stored.namespace, QUICK) as queue:
            job = (await queue.enqueue(submission("a", accounts=("main", "other")))).job
            async with working(queue, pds, "main", "other"):
                await until(lambda: stored.states() == {"done": 1, "dead": 1})
    told = {(line["event"], line["account"]): line for line in logs if line.get("job") == job}
    assert told.keys() == {("attempt_failed", "main"), ("post_failed", "main"), ("post_published", "other")}
    assert told["attempt_failed", "main"]["reason"] == "503"
    assert told["attempt_failed", "main"]["attempt"] == 1
    assert told["post_failed", "main"]["reason"] == "no such thing"
    assert told["post_published", "other"]["uri"] == "at://other/a"


async def test_each_outcome_goes_its_way(stored):
    """No lease may be lost meanwhile, however slow the machine is: that would count as a failure."""
    policy = replace(QUICK, lease_s=60.0)
    pds = Pds()
    answers = {
        "1": [Transient(reason="HTTP 503", counts_for_breaker=True)],
        "2": [Permanent(reason="InvalidRequest")],
        "3": [Wait(for_s=0.02, reason="rate_limited")],
        "4": [Transient(reason="HTTP 500", counts_for_breaker=False)] * 4,
        "5": [RuntimeError("a bug")],
    }

    async def answer(delivery, post, lease):
        if answers.get(post.id):
            outcome = answers[post.id].pop()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return None

    pds.answer = answer
    async with (
        queue_on(stored.url, stored.namespace, policy) as queue,
        working(queue, pds, policy=policy),
    ):
        jobs = {post: (await queue.enqueue(submission(post))).job for post in "123456"}
        await until(lambda: stored.states() == {"done": 4, "dead": 2})
        shown = {post: (await queue.read(job)).deliveries[0] for post, job in jobs.items()}
    assert {post: one.shown.value for post, one in shown.items()} == {
        "1": "completed", "2": "failed", "3": "completed", "4": "failed", "5": "completed", "6": "completed",
    }  # fmt: skip
    assert (shown["3"].failures, shown["1"].failures, shown["5"].failures) == (0, 1, 1)
    assert shown["2"].error == "InvalidRequest"


async def test_wrong_credentials_are_tried_once_until_they_change(stored):
    pds = Pds()
    right = asyncio.Event()

    async def answer(delivery, post, lease):
        return None if right.is_set() else Credentials(reason="wrong password")

    pds.answer = answer
    async with queue_on(stored.url, stored.namespace, QUICK) as queue, working(queue, pds) as worker:
        for number in range(5):
            await queue.enqueue(submission(str(number)))
        await until(lambda: stored.hash("account:main").get("gate_reason") == "credentials")
        worker.reload()
        await queue.promote()
        assert len(pds.calls) == 1
        right.set()
        worker.known["main"] = "another"
        worker.reload()
        await all_over(stored, 5)


async def test_it_starts_without_a_store_and_without_accounts():
    pds = Pds()
    with redis_server() as server:
        server.kill()
        async with queue_on(server.url, "late", QUICK) as queue, working(queue, pds) as worker:
            worker.known.clear()
            server.start()
            await until(lambda: queue.reachable)
            stored = QueueOfTest(server.url, "late")
            await until(lambda: stored.scores("workers"))
            await queue.enqueue(submission())
            worker.known["main"] = "fp"
            worker.reload()
            await all_over(stored)
        assert stored.faults() == []
        stored.redis.close()


async def test_what_is_in_flight_finishes_before_it_stops_and_nothing_new_begins(stored):
    pds = Pds()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def answer(delivery, post, lease):
        entered.set()
        await leave.wait()

    pds.answer = answer
    async with queue_on(stored.url, stored.namespace, QUICK) as queue:
        async with working(queue, pds) as worker:
            for number in range(3):
                await queue.enqueue(submission(str(number)))
            await entered.wait()
            worker.stop()
            leave.set()
        assert stored.states() == {"done": 1, "ready": 2}
        assert await queue.reconcile() == ("0", [])


async def test_what_does_not_finish_in_time_goes_back(stored):
    pds = Pds()
    entered = asyncio.Event()

    async def answer(delivery, post, lease):
        entered.set()
        await asyncio.Event().wait()

    pds.answer = answer
    async with queue_on(stored.url, stored.namespace, QUICK) as queue:
        async with working(queue, pds, grace_s=0.01):
            await queue.enqueue(submission())
            await entered.wait()
        assert stored.states() == {"ready": 1}
        assert stored.redis.xlen(stored.key("bells")) == 1
        (delivery,) = stored.deliveries().values()
        assert "deliveries" not in delivery


async def test_slow_work_keeps_its_lease(stored):
    """Longer than three leases, with a reaper at work all the time."""
    pds = Pds()

    async def answer(delivery, post, lease):
        await asyncio.sleep(3 * QUICK.lease_s)

    pds.answer = answer
    async with (
        queue_on(stored.url, stored.namespace, QUICK) as queue,
        working(queue, pds),
        working(queue, pds, name="w2"),
    ):
        await queue.enqueue(submission())
        await all_over(stored)
    assert len(pds.calls) == 1


async def test_without_a_heartbeat_the_lease_ends_and_another_goes_on(stored):
    pds = Pds()
    frozen, thawed = asyncio.Event(), asyncio.Event()
    late = []

    async def answer(delivery, post, lease):
        if frozen.is_set():
            return
        frozen.set()
        await thawed.wait()
        late.append(lease.expired())

    pds.answer = answer
    store = connect_queue(SecretStr(stored.url), SystemClock())
    mute = FaultyStore(store, "unsent", -1)
    queue = JobQueue(mute, SystemClock(), QUICK, namespace=stored.namespace)
    async with queue_on(stored.url, stored.namespace, QUICK) as other, working(queue, pds):
        await other.enqueue(submission())
        await frozen.wait()
        # From here on the first worker reaches nothing.
        mute._store = SimpleNamespace(run=unavailable, wait_for_entries=unavailable)
        async with working(other, pds, name="w2"):
            await all_over(stored)
            mute._store = store
            thawed.set()
            await until(lambda: late)
    await queue.aclose()
    await store.aclose()
    assert late == [True]
    assert pds.writes == {("main", "1"): 1}


async def unavailable(*_args):
    raise StoreUnavailable("test")


async def exchanges(stored):
    """How many exchanges one job takes from the start of a worker to its end, when all goes well."""
    pds = Pds()
    store = connect_queue(SecretStr(stored.url), SystemClock())
    counting = FaultyStore(store, "unsent", -1)
    queue = JobQueue(counting, SystemClock(), QUICK, namespace=stored.namespace)
    await queue.enqueue(submission())
    async with working(queue, pds):
        await all_over(stored)
    await queue.aclose()
    await store.aclose()
    stored.delete_all()
    return counting.count


@pytest.mark.parametrize("fault", ["lost", "unsent", "unanswered", "dies_before", "dies_after"])
async def test_each_exchange_of_a_job_may_go_wrong(stored, fault):
    total = await exchanges(stored)
    assert total >= 6
    for at in range(1, total + 4):
        await one_fault(stored, fault, at)
        stored.delete_all()


async def one_fault(stored, fault, at):
    """One job to its end on a worker whose exchange number `at` goes wrong; if it dies, on a second one."""
    pds = Pds()
    store = connect_queue(SecretStr(stored.url), SystemClock())
    faulty = FaultyStore(store, fault, at)
    queue = JobQueue(faulty, SystemClock(), QUICK, namespace=stored.namespace)
    async with queue_on(stored.url, stored.namespace, QUICK) as sound:
        job = (await sound.enqueue(submission())).job
        worker = Worker(
            queue,
            pds,
            lambda: {"main": "fp"},
            SystemClock(),
            WorkerPolicy(concurrency=2, lease_s=QUICK.lease_s, grace_s=0.1),
            name="first",
            draw=random.Random(at).random,
        )
        running = asyncio.create_task(worker.run())
        over = asyncio.create_task(all_over(stored))
        died = asyncio.create_task(faulty.died.wait())
        await asyncio.wait([over, died], return_when=asyncio.FIRST_COMPLETED)
        worker.stop()
        await asyncio.wait([running, died], return_when=asyncio.FIRST_COMPLETED)
        if faulty.died.is_set():
            running.cancel()
            await asyncio.wait([running])
        # What is stored is sound at this very moment, the dead worker's leases included.
        assert await sound.reconcile() == ("0", []), (fault, at, faulty.names)
        assert stored.faults() == [], (fault, at, faulty.names)
        if stored.scores("workers"):
            stored.silence_worker("first")
        async with working(sound, pds, name="second"):
            await over
        died.cancel()
        assert await sound.reconcile() == ("0", []), (fault, at, faulty.names)
        view = await sound.read(job)
    assert stored.faults() == [], (fault, at, faulty.names)
    assert view.deliveries[0].attempts <= 2
    assert dict(pds.records) == {("main", "1"): 1}
    if fault in ("lost", "unanswered", "unsent"):
        assert pds.writes[("main", "1")] <= 2
    await queue.aclose()
    await store.aclose()

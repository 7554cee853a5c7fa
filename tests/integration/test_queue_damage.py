"""Other formats, full and damaged stores: on each kind of server, with each script sent twice."""

from __future__ import annotations

import pytest

from harness.queue import DAY_S, QueueOfTest, queue_on, submission
from harness.redis_servers import KINDS, redis_server
from integration.at_work import lease, worker
from proxy.errors import StoreRefused
from proxy.syndication.desk import Verdict
from proxy.syndication.job import FORMAT, Status


async def test_a_job_of_a_newer_format_is_left_for_newer_workers(queue, stored):
    await worker(queue, "old")
    await queue.enqueue(submission("new"))
    await queue.enqueue(submission("known"))
    (newer,) = (name for name in stored.keys("job:*") if stored.hash(name)["post"] == "new")
    for name in (newer, f"d:{newer.removeprefix('job:')}:main"):
        stored.redis.hset(stored.key(name), "format", FORMAT + 1)
    leased = await lease(queue, "old")
    assert leased.job.post == "known"
    await queue.finish(leased, "at://x", "c", following="old")
    assert await queue.take("old", 10) == []
    async with queue_on(stored.url, stored.namespace, readable=FORMAT + 1) as newer_queue:
        await worker(newer_queue, "new")
        stored.let_time_pass(2)
        await newer_queue.promote()
        (leased,) = await newer_queue.take("new", 10)
        assert leased.id.endswith(":main")
        assert (await newer_queue.finish(leased, "at://x", "c")).ours


async def test_ten_thousand_days_leave_only_tombstones_and_then_nothing(queue, stored):
    await worker(queue)
    for number in range(20):
        await queue.enqueue(submission(str(number)))
    leased = await lease(queue)
    while leased is not None:
        if leased.job.post == "7":
            leased = (await queue.fail(leased, "InvalidRequest", following="w1")).following
        else:
            leased = (await queue.finish(leased, "at://x", "c", following="w1")).following
    stored.let_time_pass(8 * DAY_S)
    await queue.sweep()
    assert stored.states() == {"dead": 1}
    stored.let_time_pass(23 * DAY_S)
    await queue.sweep()
    assert stored.keys("d:*") == stored.keys("job:*") == stored.keys("idem:*") == []
    assert len(stored.tombstones()) == 20
    answer = await queue.enqueue(submission("3", revision=9))
    assert (answer.verdict, answer.job) == (Verdict.RECORDED, "")
    stored.let_time_pass(401 * DAY_S)
    await queue.sweep()
    await queue.sweep()
    assert stored.keys("posts") == stored.keys("idem:*") == []


@pytest.mark.parametrize("name", ["backlog:main", "account:main"])
async def test_a_foreign_value_harms_its_account_alone(stored, name):
    async with queue_on(stored.url, stored.namespace) as queue:
        await worker(queue, "w1", "main", "other")
        await queue.enqueue(submission("1"))
        await queue.enqueue(submission("2", accounts=("other",)))
        stored.redis.delete(stored.key(name))
        stored.redis.set(stored.key(name), "foreign")
        leased = None
        for _ in range(3):
            leased = next(iter(await queue.take("w1", 10) or ()), leased)
        assert leased.job.post == "2"
        assert (await queue.finish(leased, "at://x", "c")).ours
        await queue.promote()
        assert "foreign" in " ".join((await queue.reconcile())[1])
        stored.let_time_pass(61)
        await queue.promote()
        assert await queue.reconcile() == ("0", [])
        leased = await lease(queue)
        assert leased.job.post == "1"
        assert (await queue.finish(leased, "at://x", "c")).ours


@pytest.mark.parametrize("how", ["gone", "foreign"])
async def test_a_delivery_that_cannot_be_read_fails_visibly(stored, how):
    async with queue_on(stored.url, stored.namespace) as queue:
        await worker(queue)
        job = (await queue.enqueue(submission())).job
        stored.redis.delete(stored.key(f"d:{job}:main"))
        if how == "foreign":
            stored.redis.set(stored.key(f"d:{job}:main"), "foreign")
        assert await queue.take("w1", 10) == []
        await queue.reconcile()
        assert await queue.reconcile() == ("0", [])
        (delivery,) = (await queue.read(job)).deliveries
        assert delivery.shown is Status.FAILED
        assert "damaged" in delivery.error
        await queue.requeue(job)
        assert (await queue.finish(await lease(queue), "at://x", "c")).ours


async def test_each_kind_of_damage_is_repaired(stored):
    async with queue_on(stored.url, stored.namespace) as queue:
        await worker(queue, "w1", "a", "b", "c", "d")
        for account in "abcd":
            await queue.enqueue(submission(account, accounts=(account,)))
        (active,) = await queue.take("w1", 1)
        assert active.delivery.account == "a"
        stored.redis.hdel(stored.key("account:a"), "active", "bell")
        stored.redis.delete(stored.key("backlog:b"))
        stored.redis.xtrim(stored.key("bells"), maxlen=0)
        ready = next(name for name in stored.deliveries() if name.endswith(":d"))
        stored.redis.zadd(stored.key("delayed"), {ready: 1})
        _, repairs = await queue.reconcile()
        assert len(repairs) >= 4
        assert await queue.reconcile() == ("0", [])
        assert stored.faults() == []
        leases = await queue.take("w1", 10)
        assert {leased.delivery.account for leased in leases} == set("abcd")
        for leased in leases:
            assert (await queue.finish(leased, "at://x", "c")).ours


async def test_at_the_memory_limit_what_ends_a_delivery_still_works():
    for kind in KINDS:
        with redis_server(kind, "--maxmemory-policy", "noeviction") as server:
            stored = QueueOfTest(server.url, "full")
            async with queue_on(server.url, "full") as queue:
                accounts = ("a", "b", "c", "d", "e", "f")
                await worker(queue, "w1", *accounts)
                for account in accounts:
                    await queue.enqueue(submission(account, accounts=(account,)))
                canceled = (await queue.enqueue(submission("x", accounts=("a",)))).job
                leases = await queue.take("w1", 10)
                # No room for anything from here on.
                stored.redis.config_set("maxmemory", 1)
                with pytest.raises(StoreRefused):
                    await queue.enqueue(submission("y"))
                await queue.intend(leases[0], b"{}", "c", "r")
                assert (await queue.finish(leases[0], "at://x", "c")).ours
                assert (await queue.retry(leases[1], "HTTP 500", counts_for_breaker=True)).ours
                assert (await queue.fail(leases[2], "InvalidRequest")).ours
                assert (await queue.release(leases[3], wait_s=60, reason="rate_limited")).ours
                assert (await queue.release(leases[4], reason="no", refused_fingerprint="fp")).ours
                assert (await queue.cancel(canceled)).deliveries[0].shown is Status.CANCELED
                assert await queue.heartbeat("w1")
                await queue.close_gate("a", "breaker", 60)
                stored.redis.config_set("maxmemory", 0)
                stored.silence_worker("w1")
                stored.redis.config_set("maxmemory", 1)
                assert await queue.reap() == [leases[5].id]
                await queue.promote()
                await queue.sweep()
                assert await queue.reconcile() == ("0", [])
                assert stored.faults() == []
            stored.redis.close()

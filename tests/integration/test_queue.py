"""How deliveries are worked off, on each kind of server, with each script sent twice."""

from __future__ import annotations

import asyncio

import pytest

from harness.queue import DAY_S, POLICY, submission
from integration.at_work import lease, worker
from proxy.errors import LeaseLost
from proxy.syndication.desk import Verdict
from proxy.syndication.job import DeliveryState, Status


async def test_from_the_cms_to_the_account(queue, stored):
    await worker(queue)
    enqueued = await queue.enqueue(submission("1", revision=3, group="autumn"))
    assert enqueued.verdict is Verdict.QUEUED
    leased = await lease(queue)
    assert leased.delivery.state is DeliveryState.ACTIVE
    assert leased.job.revision == 3
    await queue.intend(leased, b'{"text":"x"}', "cid1", "3kabc", did="did:plc:x", generation=0)
    settled = await queue.finish(leased, "at://did:plc:x/p/3kabc", "cid1", ("no picture",))
    assert settled.ours
    assert settled.following is None
    view = await queue.read(enqueued.job)
    (delivery,) = view.deliveries
    assert (delivery.state, delivery.uri, delivery.cid) == ("done", "at://did:plc:x/p/3kabc", "cid1")
    assert (delivery.attempts, delivery.degraded, delivery.did) == (1, ("no picture",), "did:plc:x")
    assert view.job.payload == ""
    assert stored.redis.xlen(stored.key("bells")) == 0


async def test_deliveries_of_one_account_follow_one_another_in_order(queue):
    await worker(queue)
    for number in range(5):
        await queue.enqueue(submission(str(number)))
    leased = await lease(queue)
    order = []
    while leased is not None:
        order.append(leased.job.post)
        assert await queue.take("w1", 10) == []
        leased = (await queue.finish(leased, "at://x", "c", following="w1")).following
    assert order == ["0", "1", "2", "3", "4"]


async def test_sites_take_turns_and_urgent_posts_go_first(queue):
    await worker(queue)
    for number in range(20):
        await queue.enqueue(submission(f"import-{number}", site="importer"))
    leased = await lease(queue)
    await queue.enqueue(submission("first", site="other"))
    await queue.enqueue(submission("urgent", site="importer", priority="urgent"))
    order = []
    while leased is not None:
        order.append(leased.job.post)
        leased = (await queue.finish(leased, "at://x", "c", following="w1")).following
    assert order[:2] == ["import-0", "urgent"]
    assert order.index("first") <= 3


async def test_accounts_take_turns(queue):
    await worker(queue, "w1", "a", "b", "c")
    for number in range(3):
        for account in "abc":
            await queue.enqueue(submission(f"{account}{number}", accounts=(account,)))
    leased = (await queue.take("w1", 1))[0]
    order = []
    while leased is not None:
        order.append(leased.job.post)
        leased = (await queue.finish(leased, "at://x", "c", following="w1")).following
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


async def test_retries_then_a_dead_letter_then_back(queue, stored):
    await worker(queue)
    job = (await queue.enqueue(submission())).job
    for failures in range(1, 5):
        leased = await lease(queue)
        assert leased.delivery.failures == failures - 1
        await queue.intend(leased, b"{}", "cid", "rkey")
        await queue.retry(leased, f"HTTP 503 number {failures}", counts_for_breaker=False)
        view = await queue.read(job)
        if failures < 4:
            assert view.deliveries[0].shown is Status.RETRYING
            assert view.deliveries[0].waiting_for == "retry"
            delay_s = POLICY.retry_delays_s[failures - 1]
            stored.let_time_pass(delay_s - 5)
            await queue.promote()
            assert await queue.take("w1", 10) == []
            stored.let_time_pass(5)
            await queue.promote()
    (delivery,) = view.deliveries
    assert delivery.shown is Status.FAILED
    assert [failure.reason[-1] for failure in delivery.history] == ["1", "2", "3", "4"]
    assert delivery.error == "HTTP 503 number 4"
    assert view.job.payload
    view = await queue.requeue(job)
    assert view.deliveries[0].shown is Status.PENDING
    leased = await lease(queue)
    assert leased.delivery.intent == b"{}", "an earlier attempt may have landed"
    assert (await queue.finish(leased, "at://x", "cid")).ours


async def test_a_permanent_refusal_fails_at_once_and_touches_no_breaker(queue, stored):
    await worker(queue)
    for number in range(4):
        await queue.enqueue(submission(str(number)))
    for _ in range(3):
        await queue.fail(await lease(queue), "InvalidRequest: $.text")
    assert stored.states() == {"dead": 3, "ready": 1}
    assert (await lease(queue)).job.post == "3"
    await queue.leave("w1")


async def test_the_breaker_parks_the_account_and_lets_one_probe_through(queue, stored):
    await worker(queue, "w1", "main", "other")
    jobs = [(await queue.enqueue(submission(str(number)))).job for number in range(5)]
    for _ in range(3):
        await queue.retry(await lease(queue), "HTTP 500", counts_for_breaker=True)
    view = await queue.read(jobs[4])
    assert view.gates["main"][0] == "breaker"
    assert await queue.take("w1", 10) == []
    await queue.enqueue(submission("elsewhere", accounts=("other",)))
    assert (await lease(queue)).job.post == "elsewhere"
    await queue.leave("w1")
    await worker(queue, "w2")
    stored.let_time_pass(901)
    await queue.promote()
    probe = await lease(queue, "w2")
    assert await queue.take("w2", 10) == [], "one probe"
    await queue.retry(probe, "HTTP 500", counts_for_breaker=True)
    assert (await queue.read(jobs[4])).gates["main"][0] == "breaker"
    stored.let_time_pass(901)
    await queue.promote()
    leased = await lease(queue, "w2")
    finished = 0
    while leased is not None:
        finished += 1
        leased = (await queue.finish(leased, "at://x", "c", following="w2")).following
    assert finished == 5


async def test_a_row_of_failures_remembers_that_it_is_of_two_posts(queue, stored):
    await worker(queue)
    job = (await queue.enqueue(submission("first"))).job
    await queue.enqueue(submission("second"))
    await queue.retry(await lease(queue), "HTTP 500", counts_for_breaker=True, not_before_s=10_000)
    await queue.retry(await lease(queue), "HTTP 500", counts_for_breaker=True)
    stored.let_time_pass(61)
    await queue.promote()
    assert not (await queue.read(job)).gates
    leased = await lease(queue)
    assert leased.job.post == "second"
    await queue.retry(leased, "HTTP 500", counts_for_breaker=True)
    assert (await queue.read(job)).gates["main"][0] == "breaker"


async def test_one_post_alone_opens_the_breaker_only_with_its_last_retry(queue, stored):
    await worker(queue)
    job = (await queue.enqueue(submission())).job
    for delay_s in (*POLICY.retry_delays_s, None):
        assert not (await queue.read(job)).gates
        await queue.retry(await lease(queue), "HTTP 500", counts_for_breaker=True)
        if delay_s is not None:
            stored.let_time_pass(delay_s + 1)
            await queue.promote()
    assert (await queue.read(job)).gates["main"][0] == "breaker"


async def test_parked_for_eight_days_is_expired(queue, stored):
    job = (await queue.enqueue(submission())).job
    await queue.close_gate("main", "breaker", None)
    stored.let_time_pass(8 * DAY_S)
    await queue.promote()
    (delivery,) = (await queue.read(job)).deliveries
    assert (delivery.shown, delivery.error) == (Status.FAILED, "expired")
    await queue.open_gate("main")
    await worker(queue)
    assert await queue.take("w1", 10) == []


async def test_waiting_uses_up_no_attempt(queue, stored):
    await worker(queue)
    job = (await queue.enqueue(submission())).job
    leased = await lease(queue)
    await queue.intend(leased, b"{}", "cid", "rkey")
    await queue.release(leased, wait_s=30, reason="rate_limited")
    view = await queue.read(job)
    assert view.gates["main"][0] == "rate_limited"
    assert (view.deliveries[0].attempts, view.deliveries[0].shown) == (0, Status.PENDING)
    assert await queue.take("w1", 10) == []
    stored.let_time_pass(31)
    await queue.promote()
    assert (await lease(queue)).delivery.fence == 2
    await queue.leave("w1")


async def test_refused_credentials_wait_for_others(queue):
    await queue.introduce("w1", {"main": "old"})
    job = (await queue.enqueue(submission())).job
    await queue.release(await lease(queue), reason="wrong password", refused_fingerprint="old")
    assert (await queue.read(job)).gates["main"] == ("credentials", -1)
    await queue.introduce("w1", {"main": "old"})
    assert await queue.take("w1", 10) == []
    await queue.introduce("w1", {"main": "new"})
    assert (await queue.finish(await lease(queue), "at://x", "c")).ours


async def test_a_person_gives_refused_credentials_another_chance(queue):
    await queue.introduce("w1", {"main": "old"})
    job = (await queue.enqueue(submission())).job
    await queue.release(await lease(queue), reason="wrong password", refused_fingerprint="old")
    await queue.requeue(job)
    assert (await queue.finish(await lease(queue), "at://x", "c")).ours


async def test_one_host_with_an_old_password_leaves_the_account_to_the_other(queue, stored):
    await queue.introduce("w1", {"main": "old"})
    await queue.introduce("w2", {"main": "new"})
    await queue.enqueue(submission())
    await queue.release(await lease(queue, "w1"), reason="wrong password", refused_fingerprint="old")
    assert await queue.take("w1", 10) == []
    stored.let_time_pass(2)
    await queue.promote()
    assert (await queue.finish(await lease(queue, "w2"), "at://x", "c")).ours


async def test_an_account_that_only_another_worker_knows_is_left_to_it(queue, stored):
    await worker(queue, "w1", "main")
    await worker(queue, "w2", "exotic")
    await queue.enqueue(submission(accounts=("exotic",)))
    for _ in range(5):
        assert await queue.take("w1", 10) == []
    stored.let_time_pass(2)
    await queue.promote()
    assert (await queue.finish(await lease(queue, "w2"), "at://x", "c")).ours


async def test_an_account_that_nobody_knows_waits_for_one_who_does(queue, stored):
    await worker(queue, "w1", "main")
    await queue.enqueue(submission(accounts=("exotic",)))
    assert await queue.take("w1", 10) == []
    assert stored.hash("account:exotic")["unknown_since_ms"]
    await worker(queue, "w2", "exotic")
    assert (await queue.finish(await lease(queue, "w2"), "at://x", "c")).ours
    assert "unknown_since_ms" not in stored.hash("account:exotic")


async def test_a_paused_account_hands_out_nothing_until_resumed(queue):
    await worker(queue)
    job = (await queue.enqueue(submission())).job
    await queue.pause("main", paused=True)
    await queue.close_gate("main", "breaker", 900)
    await queue.open_gate("main")
    assert await queue.take("w1", 10) == []
    assert (await queue.read(job)).gates["main"] == ("paused", -1)
    await queue.pause("main", paused=False)
    assert (await queue.finish(await lease(queue), "at://x", "c")).ours


async def test_a_worker_gone_silent_loses_its_jobs_and_can_write_nothing(queue, stored):
    await worker(queue, "w1")
    await worker(queue, "w2")
    await queue.enqueue(submission())
    late = await lease(queue, "w1")
    assert await queue.reap() == []
    stored.silence_worker("w1")
    await queue.reap()
    again = await lease(queue, "w2")
    assert again.delivery.fence == late.delivery.fence + 1
    with pytest.raises(LeaseLost):
        await queue.intend(late, b"{}", "c", "r")
    for refused in (queue.finish(late, "at://late", "c"), queue.release(late), queue.fail(late, "late"),
                    queue.retry(late, "late", counts_for_breaker=True)):  # fmt: skip
        assert not (await refused).ours
    assert not await queue.heartbeat("w1")
    assert await queue.take("w1", 10) is None
    assert (await queue.finish(again, "at://x", "c")).ours


async def test_what_workers_die_over_is_poison_at_the_fifth(queue, stored):
    job = (await queue.enqueue(submission())).job
    for number in range(5):
        name = await worker(queue, f"w{number}")
        await lease(queue, name)
        stored.silence_worker(name)
        await queue.reap()
    (delivery,) = (await queue.read(job)).deliveries
    assert delivery.shown is Status.FAILED
    assert "poison" in delivery.error
    assert stored.redis.xinfo_consumers(stored.key("bells"), "workers") == []


async def test_a_worker_that_leaves_gives_back_without_a_count(queue, stored):
    for number in range(6):
        name = await worker(queue, f"w{number}")
        if number == 0:
            await queue.enqueue(submission())
        assert (await lease(queue, name)).delivery.deliveries == 0
        await queue.leave(name)
    assert stored.states() == {"ready": 1}
    assert stored.scores("workers") == {}


async def test_a_bell_that_was_delivered_and_not_answered_is_found_again(queue, stored):
    await worker(queue)
    await queue.enqueue(submission())
    stored.redis.xreadgroup("workers", "w1", {stored.key("bells"): ">"})
    assert await queue.take("w1", 10) == []
    (leased,) = await queue.take("w1", 10, own=True)
    assert leased.fresh
    (again,) = await queue.take("w1", 10, own=True)
    assert not again.fresh
    assert again.token == leased.token
    assert (await queue.finish(leased, "at://x", "c")).ours


async def test_a_blocking_read_wakes_for_a_new_job(queue):
    await worker(queue)
    waiting = asyncio.create_task(queue.wait_and_take("w1", 10))
    await queue.enqueue(submission())
    (leased,) = await waiting
    assert (await queue.finish(leased, "at://x", "c")).ours


async def test_a_flush_in_mid_flight_is_survived(queue, stored):
    await worker(queue)
    await queue.enqueue(submission())
    leased = await lease(queue)
    stored.delete_all()
    with pytest.raises(LeaseLost):
        await queue.intend(leased, b"{}", "c", "r")
    assert not (await queue.finish(leased, "at://x", "c")).ours
    assert await queue.wait_and_take("w1", 10) is None, "no group"
    assert await queue.take("w1", 10) is None, "a stranger"
    await queue.enqueue(submission())
    await worker(queue)
    assert (await queue.finish(await lease(queue), "at://x", "c")).ours


async def test_a_group_made_anew_leases_nothing_twice(queue, stored):
    await worker(queue, "w1")
    await worker(queue, "w2")
    await queue.enqueue(submission("1"))
    await queue.enqueue(submission("2"))
    leased = await lease(queue, "w1")
    stored.redis.xgroup_destroy(stored.key("bells"), "workers")
    assert await queue.take("w2", 10) == [], "two of one account at a time"
    assert (await queue.finish(leased, "at://x", "c")).ours
    assert (await queue.finish(await lease(queue, "w2"), "at://x", "c")).ours
    assert stored.redis.xlen(stored.key("bells")) == 0


async def test_a_lease_from_before_the_group_was_made_anew_is_taken_back_from_the_dead(queue, stored):
    await worker(queue, "w1")
    await worker(queue, "w2")
    await queue.enqueue(submission("1"))
    await lease(queue, "w1")
    stored.redis.xgroup_destroy(stored.key("bells"), "workers")
    assert await queue.take("w2", 10) == []
    stored.silence_worker("w1")
    await queue.reap()
    await queue.reconcile()
    assert (await queue.finish(await lease(queue, "w2"), "at://x", "c")).ours

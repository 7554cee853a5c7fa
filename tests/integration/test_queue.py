"""What the queue promises, on each kind of server, with each script sent twice."""

from __future__ import annotations

import asyncio
import json

import pytest

from harness.queue import DAY_S, POLICY, QueueOfTest, queue_on, sound_queue, submission
from harness.redis_servers import KINDS, redis_server
from proxy.errors import LeaseLost, StoreRefused, Superseded
from proxy.syndication.desk import Verdict
from proxy.syndication.job import FORMAT, Action, DeliveryState, Status


@pytest.fixture(scope="module", params=KINDS)
def server(request):
    with redis_server(request.param) as running:
        yield running


@pytest.fixture
def stored(server):
    with sound_queue(server.url) as own:
        yield own


@pytest.fixture(params=[False, True], ids=["once", "twice"])
async def queue(request, stored):
    async with queue_on(stored.url, stored.namespace, twice=request.param) as queue:
        yield queue
        cursor, repairs = await queue.reconcile()
        while cursor != "0":
            cursor, more = await queue.reconcile(cursor)
            repairs += more
        assert repairs == []


async def worker(queue, name="w1", *accounts):
    await queue.introduce(name, dict.fromkeys(accounts or ("main",), "fp"))
    return name


async def lease(queue, name="w1"):
    """The one delivery there is to work on."""
    (leased,) = await queue.take(name, 10)
    return leased


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


# Identity and intake.


async def test_the_same_words_are_one_job_and_one_answer(queue, stored):
    first = await queue.enqueue(submission())
    again = await queue.enqueue(submission())
    assert again.replayed
    assert (again.job, again.view) == (first.job, first.view)
    assert stored.states() == {"ready": 1}


async def test_a_key_with_another_payload_is_refused(queue):
    await queue.enqueue(submission(key="k", explicit_key=True))
    refused = await queue.enqueue(submission(key="k", explicit_key=True, payload_hash="other"))
    assert refused.verdict is Verdict.KEY_REUSED


async def test_a_thousand_at_once_with_one_key_are_one_job(stored):
    async with queue_on(stored.url, stored.namespace) as queue:
        given = [submission(key="k", explicit_key=True) for _ in range(1000)]
        answers = await asyncio.gather(*(queue.enqueue(one) for one in given))
    assert len({answer.job for answer in answers}) == 1
    assert len({repr(answer.view) for answer in answers}) == 1
    assert stored.states() == {"ready": 1}


async def test_revisions_in_any_order_end_with_the_highest(queue, stored):
    await worker(queue)
    await queue.close_gate("main", "breaker", None)
    revisions = [int(number * 37 % 50) + 1 for number in range(50)]
    for revision in revisions:
        await queue.enqueue(submission(revision=revision, payload=json.dumps({"revision": revision})))
    await queue.open_gate("main")
    leased = await lease(queue)
    assert json.loads(leased.job.payload) == {"revision": 50}
    await queue.finish(leased, "at://x", "c")
    assert stored.states() == {"done": 1}


async def test_an_edit_in_mid_flight_sends_the_worker_back(queue):
    await worker(queue)
    await queue.enqueue(submission(revision=1))
    leased = await lease(queue)
    await queue.enqueue(submission(revision=2, payload='{"mended": true}'))
    with pytest.raises(Superseded):
        await queue.intend(leased, b"old", "c", "r")
    await queue.release(leased)
    leased = await lease(queue)
    assert leased.job.payload == '{"mended": true}'
    await queue.intend(leased, b"new", "c", "r")
    await queue.enqueue(submission(revision=3, payload='{"too": "late"}'))
    await queue.intend(leased, b"new", "c", "r")
    assert (await queue.finish(leased, "at://x", "c")).ours


async def test_unpublished_while_waiting_is_not_posted_and_published_again_is(queue, stored):
    await worker(queue)
    job = (await queue.enqueue(submission())).job
    answer = await queue.enqueue(submission(wanted=False, skip="not_published"))
    assert answer.verdict is Verdict.UPDATED
    assert (await queue.read(job)).deliveries[0].shown is Status.CANCELED
    assert await queue.take("w1", 10) == []
    answer = await queue.enqueue(submission())
    assert answer.verdict is Verdict.QUEUED
    assert answer.job != job
    assert (await queue.finish(await lease(queue), "at://x", "c")).ours


async def test_an_edit_of_what_is_published_is_recorded(queue, stored):
    await worker(queue)
    job = (await queue.enqueue(submission(revision=1))).job
    await queue.finish(await lease(queue), "at://x", "c")
    answer = await queue.enqueue(submission(revision=2, payload="{}"))
    assert (answer.verdict, answer.job) == (Verdict.RECORDED, job)
    assert await queue.take("w1", 10) == []
    assert (await queue.enqueue(submission(revision=1, payload="[]"))).verdict is Verdict.OUTDATED


@pytest.mark.parametrize("swept", [False, True])
async def test_unpublished_after_publication_deletes_the_record_once(queue, stored, swept):
    await worker(queue)
    await queue.enqueue(submission(revision=1))
    await queue.finish(await lease(queue), "at://x", "c")
    if swept:
        stored.let_time_pass(8 * DAY_S)
        await queue.sweep()
    gone = submission(revision=2, wanted=False, unpublish="delete", skip="not_published")
    assert (await queue.enqueue(gone)).verdict is Verdict.RECORDED
    leased = await lease(queue)
    assert leased.delivery.action is Action.DELETE
    assert (await queue.finish(leased, leased.delivery.uri, "")).ours
    gone = submission(revision=3, wanted=False, unpublish="delete", skip="not_published")
    await queue.enqueue(gone)
    assert await queue.take("w1", 10) == []


@pytest.mark.parametrize("swept", [False, True])
async def test_published_again_after_its_deletion_it_is_a_post_of_its_own(queue, stored, swept):
    await worker(queue)
    first = (await queue.enqueue(submission(revision=1))).job
    await queue.finish(await lease(queue), "at://x", "c")
    if swept:
        stored.let_time_pass(8 * DAY_S)
        await queue.sweep()
    await queue.enqueue(submission(revision=2, wanted=False, unpublish="delete", skip="not_published"))
    await queue.finish(await lease(queue), "at://x", "")
    again = await queue.enqueue(submission(revision=3))
    assert (again.verdict, again.generation) == (Verdict.QUEUED, 1)
    assert again.job != first
    leased = await lease(queue)
    assert (leased.delivery.action, leased.delivery.generation) == (Action.POST, 1)
    await queue.finish(leased, "at://y", "c")
    assert (await queue.enqueue(submission(revision=4))).verdict is Verdict.RECORDED


async def test_unpublished_while_it_is_being_sent_is_deleted_afterwards(queue):
    await worker(queue)
    await queue.enqueue(submission(revision=1))
    leased = await lease(queue)
    await queue.intend(leased, b"{}", "c", "r")
    await queue.enqueue(submission(revision=2, wanted=False, unpublish="delete", skip="not_published"))
    following = (await queue.finish(leased, "at://x", "c", following="w1")).following
    assert following.delivery.action is Action.DELETE
    assert (await queue.finish(following, "at://x", "")).ours


async def test_the_id_of_another_post_is_refused(queue):
    await queue.enqueue(submission())
    other = submission(url_hash="f" * 64, published_at_ms=1_763_900_000_000, payload="{}")
    assert (await queue.enqueue(other)).verdict is Verdict.ID_REUSED


async def test_an_unknown_post_that_is_not_wanted_leaves_nothing_behind(queue, stored):
    before = stored.keys()
    assert (await queue.enqueue(submission(skip="too_old"))).verdict is Verdict.SKIPPED
    assert stored.keys() == before


async def test_an_edit_mends_what_had_failed(queue):
    await worker(queue)
    job = (await queue.enqueue(submission(revision=1))).job
    leased = await lease(queue)
    await queue.intend(leased, b"too long", "c", "r")
    await queue.fail(leased, "InvalidRequest: $.text")
    answer = await queue.enqueue(submission(revision=2, payload='{"mended": true}'))
    assert (answer.verdict, answer.job) == (Verdict.UPDATED, job)
    leased = await lease(queue)
    assert leased.job.payload == '{"mended": true}'
    assert leased.delivery.intent == b""
    await queue.finish(leased, "at://x", "c")


async def test_a_site_has_a_bound_and_a_pace(queue, stored):
    await worker(queue)
    for number in range(4):
        await queue.enqueue(submission(str(number), posts_per_hour=2))
    assert stored.states() == {"ready": 2, "delayed": 2}
    assert (await queue.enqueue(submission("5", max_waiting=4))).verdict is Verdict.FULL
    stored.let_time_pass(3601)
    await queue.promote()
    assert stored.states() == {"ready": 4}


async def test_a_scheduled_post_waits_and_then_meets_the_pace(queue, stored):
    soon_ms = int(stored.redis.time()[0] + 3600) * 1000
    await queue.enqueue(submission("later", published_at_ms=soon_ms, posts_per_hour=1))
    await queue.enqueue(submission("now", posts_per_hour=1))
    assert stored.states() == {"delayed": 1, "ready": 1}
    stored.let_time_pass(3550)
    await queue.promote()
    assert stored.states() == {"delayed": 1, "ready": 1}
    stored.let_time_pass(100)
    await queue.promote()
    assert stored.states() == {"ready": 2}


async def test_waiting_for_the_pace_does_not_count_as_age(queue, stored):
    """At one an hour, more wait than go out before the first of them would have expired."""
    hours = 172
    for number in range(hours):
        await queue.enqueue(submission(str(number), posts_per_hour=1))
    stored.let_time_pass((hours - 1) * 3600 + 1)
    for _ in range(2):
        await queue.promote()
    assert stored.states()["ready"] >= 7 * 24, "what was due for long has expired, as nobody took it"
    soon_ms = int(stored.redis.time()[0] + 60) * 1000
    late = (await queue.enqueue(submission("scheduled", published_at_ms=soon_ms, posts_per_hour=1))).job
    stored.let_time_pass(61)
    await queue.promote()
    delivery = stored.deliveries()[f"{late}:main"]
    assert delivery["waiting_for"] == "quota"
    assert float(delivery["expires_at_ms"]) - float(delivery["due_at_ms"]) > 6 * DAY_S * 1000


async def test_cancel_spares_what_was_sent(queue):
    await worker(queue, "w1", "a", "b", "c")
    job = (await queue.enqueue(submission(accounts=("a", "b", "c")))).job
    sent, unsent = await queue.take("w1", 2)
    await queue.intend(sent, b"{}", "c", "r")
    view = await queue.cancel(job)
    assert [delivery.state for delivery in view.deliveries] == ["active", "canceled", "canceled"]
    with pytest.raises(LeaseLost):
        await queue.intend(unsent, b"{}", "c", "r")
    assert (await queue.finish(sent, "at://x", "c")).ours
    view = await queue.read(job)
    assert view.deliveries[0].shown is Status.COMPLETED


async def test_accounts_added_and_removed_by_an_edit(queue, stored):
    await queue.enqueue(submission(revision=1, accounts=("a", "b")))
    answer = await queue.enqueue(submission(revision=2, accounts=("b", "c")))
    states = {delivery.account: delivery.state for delivery in answer.view.deliveries}
    assert states == {"a": "canceled", "b": "ready", "c": "ready"}


async def test_lists_show_a_sites_jobs_newest_first(queue):
    jobs = [(await queue.enqueue(submission(str(number), group=f"g{number % 2}"))).job for number in range(5)]
    await queue.enqueue(submission("foreign", site="other"))
    page = await queue.jobs("blog", status=None, group=None, cursor=None, limit=3)
    assert [view.job.id for view in page.jobs] == jobs[:1:-1]
    rest = await queue.jobs("blog", status=None, group=None, cursor=page.cursor, limit=3)
    assert ([view.job.id for view in rest.jobs], rest.cursor) == (jobs[1::-1], "")
    odd = await queue.jobs("blog", status=Status.PENDING, group="g1", cursor=None, limit=10)
    assert [view.job.id for view in odd.jobs] == [jobs[3], jobs[1]]
    assert not (await queue.jobs("blog", status=Status.FAILED, group=None, cursor=None, limit=10)).jobs
    assert not (await queue.jobs("blog", status=None, group=None, cursor="nonsense", limit=10)).jobs


async def test_news_wakes_who_waits(queue):
    await worker(queue)
    job = (await queue.enqueue(submission())).job
    await queue.wait_for_news(job, 20)  # returns as soon as somebody listens
    waiting = asyncio.create_task(queue.wait_for_news(job, 20))
    await asyncio.sleep(0)
    await queue.finish(await lease(queue), "at://x", "c")
    async with asyncio.timeout(15):
        await waiting


# Formats, memory, damage.


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

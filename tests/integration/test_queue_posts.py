"""What becomes of posts as their CMS sends and edits them, on each kind of server, scripts sent twice."""

from __future__ import annotations

import asyncio
import json

import pytest

from harness.queue import DAY_S, queue_on, submission
from integration.at_work import lease, worker
from proxy.errors import LeaseLost, Superseded
from proxy.syndication.desk import Verdict
from proxy.syndication.job import Action, Status


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

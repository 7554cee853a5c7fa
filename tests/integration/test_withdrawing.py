"""What is withdrawn is not sent, what is wanted again comes back, and what is done is not done twice."""

from __future__ import annotations

import time

import pytest

from harness.queue import queue_on, submission
from proxy.errors import LeaseLost, Superseded
from proxy.syndication.desk import Verdict
from proxy.syndication.job import Action

DRAFT = {"wanted": False, "skip": "not_published"}


@pytest.fixture
async def queue(stored):
    async with queue_on(stored.url, stored.namespace, twice=True) as queue:
        await queue.introduce("w1", dict.fromkeys(("main", "a", "b"), "fp"))
        yield queue
        assert await queue.reconcile() == ("0", [])


async def lease(queue, account="main"):
    """The delivery of `account`, which is the only one to work on."""
    (leased,) = await queue.take("w1", 10)
    assert leased.delivery.account == account
    return leased


async def sent(queue):
    """Lease the one delivery there is, and let it be on its way."""
    leased = await lease(queue)
    await queue.intend(leased, b"{}", "cid", "rkey", did="did:plc:x")
    return leased


async def wait_for_retry(queue, stored):
    """A delivery that may have been sent, and waits for its next attempt."""
    assert (await queue.retry(await sent(queue), "HTTP 503", counts_for_breaker=False)).ours
    return stored


async def next_attempt(queue, stored):
    stored.let_time_pass(400)
    await queue.promote()
    return await lease(queue)


def states(view):
    return {delivery.account: str(delivery.state) for delivery in view.deliveries}


async def use_up_retries(queue, stored):
    """A delivery that may have been sent, and has failed for good."""
    await wait_for_retry(queue, stored)
    for _ in range(3):
        again = await next_attempt(queue, stored)
        await queue.retry(again, "HTTP 503", counts_for_breaker=False)


class TestNeverSent:
    """Nothing of it can be there: a withdrawal ends it."""

    @pytest.mark.parametrize("by", ["draft", "cancel"])
    @pytest.mark.parametrize("unpublish", ["keep", "delete"])
    async def test_what_was_refused_is_canceled(self, queue, by, unpublish):
        job = (await queue.enqueue(submission(revision=1))).job
        await queue.fail(await sent(queue), "HTTP 400")
        if by == "draft":
            await queue.enqueue(submission(revision=2, unpublish=unpublish, **DRAFT))
        else:
            await queue.cancel(job)
        assert states(await queue.requeue(job)) == {"main": "canceled"}
        assert await queue.take("w1", 10) == []

    @pytest.mark.parametrize("by", ["draft", "cancel"])
    async def test_what_was_refused_and_is_tried_again_is_canceled(self, queue, by):
        job = (await queue.enqueue(submission(revision=1))).job
        await queue.fail(await sent(queue), "HTTP 400")
        await queue.requeue(job)
        if by == "draft":
            await queue.enqueue(submission(revision=2, unpublish="delete", **DRAFT))
        else:
            await queue.cancel(job)
        assert states(await queue.read(job)) == {"main": "canceled"}
        assert await queue.take("w1", 10) == []

    async def test_what_waits_for_a_retry_is_canceled(self, queue, stored):
        job = (await queue.enqueue(submission(revision=1))).job
        await queue.retry(await lease(queue), "no login", counts_for_breaker=False)
        assert states(await queue.cancel(job)) == {"main": "canceled"}


class TestPerhapsSent:
    """It may be there: the next attempt looks, and says what it found."""

    @pytest.mark.parametrize("unpublish", ["keep", "delete"])
    async def test_nothing_there(self, queue, stored, unpublish):
        job = (await queue.enqueue(submission(revision=1))).job
        await wait_for_retry(queue, stored)
        await queue.enqueue(submission(revision=2, unpublish=unpublish, **DRAFT))
        looking = await next_attempt(queue, stored)
        assert looking.delivery.after == {"keep": "cancel", "delete": "delete"}[unpublish]
        with pytest.raises(Superseded):
            await queue.intend(looking, b"{}", "cid", "rkey")
        await queue.fail(looking, "nothing of it is there")
        assert states(await queue.read(job)) == {"main": "canceled"}

    async def test_it_is_there_and_stays(self, queue, stored):
        job = (await queue.enqueue(submission(revision=1))).job
        await wait_for_retry(queue, stored)
        await queue.enqueue(submission(revision=2, **DRAFT))
        await queue.finish(await next_attempt(queue, stored), "at://x", "c")
        assert states(await queue.read(job)) == {"main": "done"}
        assert await queue.take("w1", 10) == []

    async def test_it_is_there_and_goes(self, queue, stored):
        job = (await queue.enqueue(submission(revision=1))).job
        await wait_for_retry(queue, stored)
        await queue.enqueue(submission(revision=2, unpublish="delete", **DRAFT))
        await queue.finish(await next_attempt(queue, stored), "at://x", "c")
        deleting = await lease(queue)
        assert deleting.delivery.action is Action.DELETE
        await queue.finish(deleting, "at://x", "c")
        assert states(await queue.read(job)) == {"main": "done"}

    async def test_withdrawn_while_it_is_being_sent_again(self, queue, stored):
        job = (await queue.enqueue(submission(revision=1))).job
        await wait_for_retry(queue, stored)
        again = await next_attempt(queue, stored)
        await queue.cancel(job)
        with pytest.raises(Superseded):
            await queue.intend(again, b"{}", "cid", "rkey")
        await queue.release(again)
        await queue.fail(await lease(queue), "nothing of it is there")
        assert states(await queue.read(job)) == {"main": "canceled"}

    async def test_after_the_last_attempt_it_is_looked_at_once_more(self, queue, stored):
        job = (await queue.enqueue(submission(revision=1))).job
        await use_up_retries(queue, stored)
        assert states(await queue.read(job)) == {"main": "dead"}
        await queue.enqueue(submission(revision=2, unpublish="delete", **DRAFT))
        assert (await lease(queue)).delivery.after == "delete"

    @pytest.mark.parametrize("dead", [False, True])
    async def test_published_again_it_is_posted_and_stays(self, queue, stored, dead):
        job = (await queue.enqueue(submission(revision=1))).job
        await (use_up_retries if dead else wait_for_retry)(queue, stored)
        await queue.enqueue(submission(revision=2, unpublish="delete", **DRAFT))
        await queue.enqueue(submission(revision=3, unpublish="delete"))
        again = await next_attempt(queue, stored)
        await queue.intend(again, b"{}", "cid", "rkey")
        await queue.finish(again, "at://x", "c")
        assert states(await queue.read(job)) == {"main": "done"}
        assert await queue.take("w1", 10) == []


class TestPublishedAgain:
    """A deletion that was not carried out is called off."""

    async def unpublished(self, queue):
        job = (await queue.enqueue(submission(revision=1))).job
        await queue.finish(await sent(queue), "at://x", "c")
        await queue.enqueue(submission(revision=2, unpublish="delete", **DRAFT))
        return job

    async def is_kept(self, queue, job):
        view = await queue.read(job)
        assert [(str(one.state), one.action) for one in view.deliveries] == [("done", Action.POST)]
        assert await queue.take("w1", 10) == []

    async def test_a_deletion_that_waits(self, queue):
        job = await self.unpublished(queue)
        await queue.enqueue(submission(revision=3, unpublish="delete"))
        await self.is_kept(queue, job)

    async def test_a_deletion_that_failed(self, queue):
        job = await self.unpublished(queue)
        await queue.fail(await lease(queue), "HTTP 400")
        await queue.enqueue(submission(revision=3, unpublish="delete"))
        await self.is_kept(queue, job)

    @pytest.mark.parametrize("end", ["retry", "fail", "release", "leave"])
    async def test_a_deletion_under_way_that_does_not_succeed(self, queue, end):
        job = await self.unpublished(queue)
        leased = await lease(queue)
        await queue.enqueue(submission(revision=3, unpublish="delete"))
        if end == "retry":
            assert (await queue.retry(leased, "HTTP 503", counts_for_breaker=False)).ours
        elif end == "fail":
            assert (await queue.fail(leased, "HTTP 400")).ours
        elif end == "release":
            assert (await queue.release(leased)).ours
        else:
            await queue.leave("w1")
            await queue.introduce("w1", {"main": "fp"})
        await self.is_kept(queue, job)

    async def test_a_job_that_is_over_shows_the_revision_that_came_last(self, queue):
        job = (await queue.enqueue(submission(revision=1))).job
        await queue.finish(await sent(queue), "at://x", "c")
        answer = await queue.enqueue(submission(revision=2))
        assert answer.verdict is Verdict.RECORDED
        assert (await queue.read(job)).job.revision == 2


class TestAccounts:
    """Each account that is named gets the post once."""

    async def test_left_out_and_named_again_while_it_waits(self, queue):
        for revision, accounts in enumerate((("a", "b"), ("a",), ("a", "b"))):
            answer = await queue.enqueue(submission(revision=revision, accounts=accounts))
        assert states(answer.view) == {"a": "ready", "b": "ready"}

    @pytest.mark.parametrize("by", ["draft", "cancel", "never named"])
    async def test_when_another_one_is_done(self, queue, stored, by):
        accounts = ("a",) if by == "never named" else ("a", "b")
        job = (await queue.enqueue(submission(revision=1, accounts=accounts))).job
        (leased, *_) = await queue.take("w1", 1)
        assert leased.delivery.account == "a"
        await queue.finish(leased, "at://x", "c")
        if by == "draft":
            await queue.enqueue(submission(revision=2, accounts=accounts, **DRAFT))
        elif by == "cancel":
            await queue.cancel(job)
        answer = await queue.enqueue(submission(revision=3, accounts=("a", "b"), skip="already_published"))
        assert (answer.verdict, answer.job) == (Verdict.UPDATED, job)
        assert states(answer.view) == {"a": "done", "b": "ready"}
        await queue.finish(await lease(queue, "b"), "at://y", "c")
        assert states(await queue.read(job)) == {"a": "done", "b": "done"}
        assert (await queue.enqueue(submission(revision=4, accounts=("a", "b")))).verdict is Verdict.RECORDED

    async def test_an_old_post_goes_to_no_new_account(self, queue):
        await queue.enqueue(submission(revision=1, accounts=("a",)))
        await queue.finish(await lease(queue, "a"), "at://x", "c")
        answer = await queue.enqueue(submission(revision=2, accounts=("a", "b"), skip="too_old"))
        assert (answer.verdict, states(answer.view)) == (Verdict.RECORDED, {"a": "done"})


class TestDates:
    """A post goes out when its last edit says, and not faster than its site may."""

    def in_ms(self, stored, seconds):
        return int((stored.redis.time()[0] + seconds) * 1000)

    async def test_from_the_quota_to_a_later_date(self, queue, stored):
        for post in "12":
            job = (await queue.enqueue(submission(post, revision=1, posts_per_hour=1))).job
        later_ms = self.in_ms(stored, 3 * 86400)
        await queue.enqueue(submission("2", revision=2, posts_per_hour=1, published_at_ms=later_ms))
        (delivery,) = (await queue.read(job)).deliveries
        assert (delivery.waiting_for, delivery.due_at_ms) == ("schedule", later_ms)

    async def test_from_a_schedule_to_now_the_quota_holds(self, queue, stored):
        later_ms = self.in_ms(stored, 3600)
        posts = "123456"
        for post in posts:
            await queue.enqueue(submission(post, revision=1, posts_per_hour=2, published_at_ms=later_ms))
        for post in posts:
            await queue.enqueue(submission(post, revision=2, posts_per_hour=2))
        assert stored.states() == {"ready": 2, "delayed": 4}


async def test_a_key_of_the_cms_stands_for_the_words_of_a_skipped_post(queue):
    skipped = submission(revision=1, key="k" * 64, explicit_key=True, **DRAFT)
    for _ in range(2):
        assert (await queue.enqueue(skipped)).verdict is Verdict.SKIPPED
    other = submission(revision=2, key="k" * 64, explicit_key=True)
    assert (await queue.enqueue(other)).verdict is Verdict.KEY_REUSED


async def test_a_heartbeat_from_the_future_counts_from_now(queue, stored):
    await queue.enqueue(submission())
    leased = await lease(queue)
    stored.redis.zincrby(stored.key("workers"), 7_200_000, "w1")
    await queue.reap()
    assert abs(stored.scores("workers")["w1"] / 1000 - time.time()) < 3600
    stored.silence_worker("w1")
    await queue.reap()
    assert stored.states() == {"ready": 1}
    with pytest.raises(LeaseLost):
        await queue.intend(leased, b"{}", "cid", "rkey")

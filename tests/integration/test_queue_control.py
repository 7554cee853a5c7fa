"""What operators ask of the queue, and who goes first, on each kind of server, with scripts sent twice."""

from __future__ import annotations

import pytest

from harness.queue import DAY_S, queue_on, submission
from proxy.syndication.controls import Controls
from proxy.syndication.job import DeliveryState, Status
from proxy.syndication.overview import DeadFilter


class Forgiven(list):
    async def __call__(self, account):
        self.append(account)


@pytest.fixture
def forgiven():
    return Forgiven()


@pytest.fixture
def controls(queue, forgiven):
    return Controls(queue, forgiven)


async def work_off(queue, *, count=10**6):
    """Finish up to `count` deliveries, one worker taking one at a time; the posts in their order."""
    order = []
    taken = await queue.take("w1", 1)
    leased = taken[0] if taken else None
    while leased is not None:
        order.append(leased.job.post)
        following = "w1" if len(order) < count else ""
        leased = (await queue.finish(leased, "at://x", "c", following=following)).following
    return order


async def died(queue, *, first=0, count=1, reason="bad word", site="blog", account="main", group=""):
    """So many deliveries that died of `reason`; their jobs."""
    jobs = []
    for number in range(first, first + count):
        post = f"{reason}-{site}-{account}-{number}"
        given = submission(post, site=site, accounts=(account,), group=group)
        jobs.append((await queue.enqueue(given)).job)
        (leased,) = await queue.take("w1", 1)
        await queue.fail(leased, reason)
    return jobs


@pytest.fixture(autouse=True)
async def worker(queue):
    await queue.introduce("w1", dict.fromkeys(("main", "side"), "fp"))


# Who goes first.


async def test_the_urgent_go_first_and_one_in_four_is_another(queue):
    for number in range(9):
        await queue.enqueue(submission(f"normal-{number}"))
    for number in range(9):
        await queue.enqueue(submission(f"urgent-{number}", priority="urgent"))
    order = await work_off(queue)
    kinds = "".join(post[0] for post in order)
    assert kinds == "uuunuuunuuunnnnnnn"
    assert [post for post in order if post[0] == "n"] == [f"normal-{number}" for number in range(9)]
    assert [post for post in order if post[0] == "u"] == [f"urgent-{number}" for number in range(9)]


async def test_the_urgent_posts_of_a_busy_site_are_not_behind_those_of_others(queue):
    for number in range(20):
        await queue.enqueue(submission(f"n{number}", site="importer"))
    for number in range(5):
        await queue.enqueue(submission(f"other{number}", site="other", priority="urgent"))
    await queue.enqueue(submission("urgent", site="importer", priority="urgent"))
    assert "urgent" in (await work_off(queue))[:2]


async def test_an_edit_may_make_a_waiting_post_urgent_and_take_that_back(queue):
    for number in range(3):
        await queue.enqueue(submission(str(number), revision=1))
    await queue.enqueue(submission("2", revision=2, priority="urgent"))
    await queue.enqueue(submission("1", revision=2, priority="urgent"))
    await queue.enqueue(submission("1", revision=3))
    assert await work_off(queue) == ["2", "0", "1"]


# Pause and resume.


async def test_paused_everything_hands_out_nothing_and_loses_no_order(queue, controls, stored):
    for number in range(3):
        await queue.enqueue(submission(f"before-{number}", accounts=("main", "side")))
    (leased,) = await queue.take("w1", 1)
    await controls.pause_all()
    assert await queue.wait_and_take("w1", 10) == []  # of the bell that rang before
    await queue.enqueue(submission("while"))
    # What was under way ends; nothing follows it.
    assert (await queue.finish(leased, "at://x", "c", following="w1")).following is None
    assert await queue.take("w1", 10) == []
    view = await queue.read(leased.job.id)
    assert view.gates == {"main": ("paused", -1), "side": ("paused", -1)}
    overview = await controls.overview(["main"])
    assert (overview.paused, overview.accounts[0].waiting) == (True, 3)
    assert overview.paused_at_ms <= overview.now_ms
    assert (await queue.reconcile())[1] == []
    assert stored.faults() == []

    await controls.resume_all()
    order = {"main": [], "side": []}
    while leases := await queue.take("w1", 1):
        order[leases[0].delivery.account].append(leases[0].job.post)
        await queue.finish(leases[0], "at://x", "c")
    assert order == {
        "main": ["before-1", "before-2", "while"],
        "side": ["before-0", "before-1", "before-2"],
    }


async def test_resuming_everything_leaves_a_paused_account_paused(queue, controls):
    for account in ("main", "side"):
        await queue.enqueue(submission(account, accounts=(account,)))
    await controls.pause("side")
    await controls.pause_all()
    await controls.resume_all()
    assert await work_off(queue) == ["main"]
    await controls.resume("side")
    assert await work_off(queue) == ["side"]


async def test_what_is_due_while_all_is_paused_goes_out_after_it(queue, controls, stored):
    await queue.enqueue(submission("first"))
    (leased,) = await queue.take("w1", 1)
    await queue.retry(leased, "HTTP 500", counts_for_breaker=False)
    await controls.pause_all()
    stored.let_time_pass(100)
    await queue.promote()
    assert await queue.take("w1", 1) == []
    await controls.resume_all()
    assert await work_off(queue) == ["first"]


@pytest.mark.parametrize("reason", ["breaker", "credentials"])
async def test_to_resume_an_account_opens_what_waits_for_a_person(queue, controls, forgiven, reason):
    await queue.enqueue(submission())
    await queue.close_gate("main", reason, None)
    await controls.resume("main")
    assert forgiven == ([] if reason == "breaker" else ["main"])
    assert await work_off(queue) == ["1"]


async def test_to_resume_an_account_does_not_ask_a_server_that_wants_to_be_left_alone(queue, controls):
    await queue.enqueue(submission())
    await queue.close_gate("main", "rate_limited", 60)
    await controls.resume("main")
    assert await queue.take("w1", 1) == []


async def test_a_flush_is_told(queue, controls, stored):
    mark, lost, paused = await queue.mark("")
    assert (lost, paused) == (False, False)
    await controls.pause_all()
    assert await queue.mark(mark) == (mark, False, True)
    stored.delete_all()
    after, lost, paused = await queue.mark(mark)
    assert (after != mark, lost, paused) == (True, True, False)
    overview = await controls.overview([])
    assert (overview.paused, overview.emptied_at_ms > 0) == (False, True)
    # Whoever starts later knows of nothing that was lost, and does not take back what others have told.
    assert await queue.mark("") == (after, False, False)
    assert (await controls.overview([])).emptied_at_ms == overview.emptied_at_ms
    await controls.resume_all()
    assert (await controls.overview([])).emptied_at_ms == 0


# Dead letters.


async def test_dead_letters_are_listed_by_what_is_asked_for(queue, controls, stored):
    await died(queue, reason="bad word", group="autumn")
    stored.let_time_pass(1)
    await died(queue, first=1, reason="bad word", group="autumn")
    stored.let_time_pass(1)
    await died(queue, reason="Too Long", account="side")
    stored.let_time_pass(2 * DAY_S)
    await died(queue, count=1, reason="bad word", site="news")

    async def found(**filters):
        letters = (await controls.dead(DeadFilter(**filters))).letters
        return [letter.post for letter in letters]

    old = ["Too Long-blog-side-0", "bad word-blog-main-1", "bad word-blog-main-0"]
    assert await found() == ["bad word-news-main-0", *old]
    assert await found(site="blog") == old
    assert await found(account="side") == old[:1]
    assert await found(group="autumn") == old[1:]
    assert await found(reason="too long") == old[:1]
    assert await found(reason="%") == []
    now_ms = (await controls.overview([])).now_ms
    assert await found(died_until_ms=now_ms - DAY_S * 1000) == old
    assert await found(died_from_ms=now_ms - DAY_S * 1000) == ["bad word-news-main-0"]
    (letter,) = (await controls.dead(DeadFilter(account="side"))).letters
    assert (letter.account, letter.site, letter.group, letter.error) == ("side", "blog", "", "Too Long")


async def test_errors_are_counted_by_account_and_reason(queue, controls):
    await died(queue, count=3, reason="bad word")
    await died(queue, count=1, reason="bad word", account="side")
    await died(queue, count=1, reason="too long", site="news")
    groups = await controls.errors(DeadFilter())
    assert [(group.account, group.reason, group.count) for group in groups] == [
        ("main", "bad word", 3),
        ("main", "too long", 1),
        ("side", "bad word", 1),
    ]
    (other,) = await controls.errors(DeadFilter(site="news"))
    assert other.last_at_ms == groups[1].last_at_ms


async def test_what_fits_is_tried_again_in_its_order_and_the_rest_stays(queue, controls, stored):
    for number in range(3):
        await died(queue, first=number, reason="no")
        stored.let_time_pass(0.001)  # those of one instant are in no order
    await died(queue, count=2, reason="never")
    counts = [count async for count in controls.retry_dead(DeadFilter(reason="no"))]
    # A script that is sent twice finds nothing left to do.
    assert sum(counts) in (3, 0)
    assert stored.states() == {"ready": 3, "dead": 2}
    assert await work_off(queue) == ["no-blog-main-0", "no-blog-main-1", "no-blog-main-2"]


async def test_to_try_again_forgives_refused_logins(queue, controls, forgiven):
    (job,) = await died(queue, account="side")
    await queue.close_gate("side", "credentials", None)
    async for _ in controls.retry_dead(DeadFilter()):
        pass
    assert forgiven == ["side"]
    await queue.close_gate("side", "credentials", None)
    await controls.retry(job)
    assert forgiven == ["side", "side"]
    assert await work_off(queue) == ["bad word-blog-side-0"]


async def test_what_is_dropped_ends_as_canceled_and_may_be_sent_anew(queue, controls, stored):
    jobs = await died(queue, count=2, reason="no")
    kept = await died(queue, count=1, reason="yes")
    async for _ in controls.drop_dead(DeadFilter(reason="no")):
        pass
    for job in jobs:
        assert [one.shown for one in (await queue.read(job)).deliveries] == [Status.CANCELED]
    assert (await queue.read(kept[0])).deliveries[0].state is DeliveryState.DEAD
    await queue.enqueue(submission("no-blog-main-0", revision=2))
    assert await work_off(queue) == ["no-blog-main-0"]


async def test_many_that_died_in_the_same_instant_are_all_seen(stored):
    async with queue_on(stored.url, stored.namespace) as queue:
        await queue.introduce("w1", {"main": "fp"})
        controls = Controls(queue, Forgiven())
        for number in range(250):
            await queue.enqueue(submission(str(number)))
        await controls.pause("main")
        stored.let_time_pass(8 * DAY_S)
        while (await queue.promote()).count:
            pass
        seen, cursor = [], ""
        while True:
            page = await controls.dead(DeadFilter(), cursor, 40)
            seen += [letter.post for letter in page.letters]
            cursor = page.cursor
            if not cursor:
                break
        assert sorted(seen) == sorted(str(number) for number in range(250))
        assert sum([count async for count in controls.drop_dead(DeadFilter(reason="nothing"))]) == 0
        assert sum([count async for count in controls.retry_dead(DeadFilter(reason="expired"))]) == 250

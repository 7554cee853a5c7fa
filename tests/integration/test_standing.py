"""How the queue stands is told truly: what waits where, since when, and why."""

from __future__ import annotations

import pytest

from harness.queue import DAY_S, POLICY, queue_on, submission


@pytest.fixture
async def queue(stored):
    async with queue_on(stored.url, stored.namespace) as queue:
        yield queue


def counts(standing):
    names = ("ready", "active", "delayed", "parked", "dead", "done", "dead_lately")
    return {name: getattr(standing, name) for name in names if getattr(standing, name)}


def account_of(standing, name):
    return next(account for account in standing.accounts if account.name == name)


async def test_nothing_stands_in_an_empty_queue(queue):
    standing = await queue.standing(["main"])
    assert counts(standing) == {}
    assert (standing.late_s, standing.workers, standing.accounts, standing.live) == (0, 0, (), 0)


async def test_each_state_is_counted(queue, stored):
    await queue.introduce("w1", {"main": "fp", "side": "fp"})
    for number in range(6):
        await queue.enqueue(submission(str(number)))
    await queue.enqueue(submission("later", published_at_ms=32_503_680_000_000))
    await queue.enqueue(submission("elsewhere", accounts=("side",)))
    assert counts(await queue.standing([])) == {"ready": 7, "delayed": 1}, "of accounts that others have"
    assert counts(await queue.standing(["main", "side"])) == {"ready": 7, "delayed": 1}
    first, other = sorted(await queue.take("w1", 2), key=lambda leased: leased.job.post)
    following = (await queue.finish(first, "at://x", "c", following="w1")).following
    following = (await queue.fail(following, "refused", following="w1")).following
    await queue.retry(following, "broken", counts_for_breaker=False)
    await queue.pause("main", paused=True)
    standing = await queue.standing(["main", "side"])
    assert counts(standing) == {
        "active": 1,
        "parked": 3,
        "delayed": 2,
        "dead": 1,
        "dead_lately": 1,
        "done": 1,
    }
    assert standing.live == 6
    assert standing.workers == 1
    await queue.finish(other, "at://x", "c")
    stored.let_time_pass(3601)
    standing = await queue.standing(["main"])
    assert (standing.dead, standing.dead_lately) == (1, 0)
    stored.silence_worker("w1")
    assert (await queue.standing([])).workers == 0


async def test_what_closes_an_account_is_told(queue):
    await queue.introduce("w1", {"main": "fp", "side": "fp"})
    for account in ("main", "side"):
        await queue.enqueue(submission(account, accounts=(account,)))
    await queue.close_gate("main", "breaker", 900)
    [leased] = await queue.take("w1", 1)
    await queue.release(leased, refused_fingerprint="fp", reason="wrong password", following="w1")
    await queue.take("w1", 1)
    for own in (["main", "side"], ["main"]):
        main = account_of(await queue.standing(own), "main")
        assert (main.waiting, main.closed) == (1, "breaker")
        assert 890 < main.opens_in_s <= 900
    side = account_of(await queue.standing(["side"]), "side")
    assert (side.waiting, side.closed, side.opens_in_s) == (1, "credentials", None)
    await queue.pause("main", paused=True)
    main = account_of(await queue.standing([]), "main")
    assert (main.closed, main.opens_in_s) == ("paused", None)
    await queue.pause("main", paused=False)
    for account in ("main", "side"):
        await queue.open_gate(account)
    assert {account.closed for account in (await queue.standing(["main", "side"])).accounts} == {""}


async def test_what_could_have_gone_out_is_late(queue, stored):
    await queue.introduce("w1", {"main": "fp"})
    await queue.enqueue(submission("1"))
    stored.let_time_pass(500)
    await queue.enqueue(submission("2"))
    assert 500 <= (await queue.standing(["main"])).late_s < 560
    await queue.pause("main", paused=True)
    assert (await queue.standing(["main"])).late_s < 60, "it waits because somebody wants it to"
    await queue.pause("main", paused=False)
    [leased] = await queue.take("w1", 1)
    assert 500 <= (await queue.standing(["main"])).late_s < 560, "it is still not there"
    await queue.finish(leased, "at://x", "c")
    assert (await queue.standing(["main"])).late_s < 60


async def test_what_is_due_and_not_moved_on_is_late(queue, stored):
    """Nobody keeps house: it is not ready, and will never be."""
    await queue.introduce("w1", {"main": "fp"})
    await queue.enqueue(submission("1"))
    [leased] = await queue.take("w1", 1)
    await queue.retry(leased, "broken", counts_for_breaker=False)
    assert (await queue.standing(["main"])).late_s == 0, "its time has not come"
    stored.let_time_pass(POLICY.retry_delays_s[0] + 700)
    standing = await queue.standing(["main"])
    assert standing.delayed == 1
    assert 700 <= standing.late_s < 760


async def test_an_account_that_nobody_knows_is_told(queue, stored):
    await queue.introduce("w1", {"other": "fp"})
    await queue.enqueue(submission("1"))
    await queue.take("w1", 1)
    assert await queue.wait_and_take("w1", 1) in ([], None)
    stored.let_time_pass(DAY_S / 2)
    main = account_of(await queue.standing([]), "main")
    assert main.waiting == 1
    assert DAY_S / 2 <= main.unknown_s < DAY_S / 2 + 60

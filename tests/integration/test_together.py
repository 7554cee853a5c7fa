"""Calls of a step that are made at the same time go out as one, and have nothing else in common."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from harness.queue import QueueOfTest, queue_on, submission
from harness.redis_servers import KINDS, redis_server, script_of
from integration.at_work import worker
from proxy.clock import SystemClock
from proxy.errors import StoreRefused
from proxy.store.batches import Batches
from proxy.store.calls import Call
from proxy.store.servers import servers_of
from proxy.syndication.desk import Verdict
from proxy.syndication.job import FORMAT
from proxy.syndication.queue_steps import STEPS

ACCOUNTS = tuple(f"a{number}" for number in range(50))
URI = "at://did:plc:x/app.bsky.feed.post/x"


@asynccontextmanager
async def queue_of_its_own(kind, *options):
    """A queue, and a look at its store, which nobody else uses."""
    with redis_server(kind, *options) as server:
        stored = QueueOfTest(server.url, "own")
        async with queue_on(server.url, "own") as queue:
            yield queue, stored
            assert await queue.reconcile() == ("0", [])
        assert stored.faults() == []
        stored.redis.close()


async def leases_of(queue, posts=1):
    """A lease for each account, of the first of so many posts."""
    await worker(queue, "w1", *ACCOUNTS)
    wanted = [submission(f"{account}-{n}", accounts=(account,)) for n in range(posts) for account in ACCOUNTS]
    await asyncio.gather(*map(queue.enqueue, wanted))
    leases = await queue.take("w1", 100)
    assert len(leases) == len(ACCOUNTS)
    return leases


@pytest.mark.parametrize("kind", KINDS)
async def test_many_calls_are_few_scripts_and_each_has_its_own_answer(kind):
    async with queue_of_its_own(kind) as (queue, stored):
        wanted = [submission(str(number)) for number in range(100)]
        before = stored.redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
        answers = await asyncio.gather(*map(queue.enqueue, wanted))
        # 32 travel together.
        assert stored.redis.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 5
        assert [answer.job for answer in answers] == [one.job for one in wanted]
        # Of many that say the same, one is the first to arrive.
        answers = await asyncio.gather(*(queue.enqueue(submission("again")) for _ in range(40)))
        assert sorted(answer.replayed for answer in answers) == [False] + 39 * [True]
        assert len({answer.job for answer in answers}) == 1


async def test_a_store_that_knows_no_script_is_told_all_of_it():
    async with queue_of_its_own("valkey-9") as (queue, stored):
        await queue.enqueue(submission("0"))
        stored.redis.script_flush()
        answers = await asyncio.gather(*(queue.enqueue(submission(f"{n + 1}")) for n in range(10)))
        assert [answer.verdict for answer in answers] == 10 * [Verdict.QUEUED]


async def test_no_call_waits_for_the_next_one():
    """One comes so many turns of the loop after the answer to the one before, whose batch ends meanwhile."""
    loop = asyncio.get_running_loop()
    with redis_server("valkey-9") as server:
        servers = servers_of(SecretStr(server.url), SystemClock(), timeout_s=5)
        batches = Batches(servers, 5, at_a_time=1, size=1)

        def call(tell):
            batches.add(Call(script_of("return 1"), ("key",), (), tell))

        def call_after(turns, tell):
            if turns:
                loop.call_soon(call_after, turns - 1, tell)
            else:
                call(tell)

        async with asyncio.timeout(20):
            for turns in range(30):
                answer = loop.create_future()
                call(lambda _, turns=turns, answer=answer: call_after(turns, answer.set_result))
                assert await answer == 1
        await batches.aclose()
        await servers.aclose()


async def test_a_connection_lost_under_many_calls_is_one_failure():
    """All of them are sent again at once, and none hears of it."""
    async with queue_of_its_own("valkey-9") as (queue, stored):
        for number in range(3):
            await queue.enqueue(submission(f"{number}"))
            calls = [asyncio.create_task(queue.enqueue(submission(f"{number}-{n}"))) for n in range(20)]
            await asyncio.sleep(0)  # they wait for their batch
            stored.redis.client_kill_filter(_type="normal", skipme=True)
            answers = await asyncio.gather(*calls)
            assert {answer.verdict for answer in answers} == {Verdict.QUEUED}


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_is_damaged_fails_alone(kind):
    async with queue_of_its_own(kind) as (queue, stored):
        leases = await leases_of(queue)
        broken = stored.key(f"d:{leases[7].id}")
        stored.redis.rename(broken, "aside")
        stored.redis.set(broken, "no hash")
        ends = [queue.finish(leased, URI, "c", following="w1") for leased in leases]
        answers = await asyncio.gather(*ends, return_exceptions=True)
        refused = [number for number, answer in enumerate(answers) if isinstance(answer, StoreRefused)]
        assert refused == [7]
        assert "WRONGTYPE" in str(answers[7])
        assert all(answer.ours for number, answer in enumerate(answers) if number != 7)
        stored.redis.rename("aside", broken)
        assert (await queue.finish(leases[7], URI, "c")).ours


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_store_refuses_each_of_them(kind):
    async with queue_of_its_own(kind, "--maxmemory-policy", "noeviction") as (queue, stored):
        leases = await leases_of(queue)
        await queue.enqueue(submission("old", revision=1))
        stored.redis.config_set("maxmemory", 1)
        # What frees memory is not refused, and opens the door to none of the others.
        withdrawn = submission("old", revision=2, wanted=False, skip="not_published")
        skipped = submission("skipped", wanted=False, skip="not_published", explicit_key=True)
        new = [queue.enqueue(submission(f"new-{n}")) for n in range(5)]
        ends = [queue.finish(leased, URI, "c") for leased in leases]
        gone, *answers = await asyncio.gather(
            queue.enqueue(withdrawn), queue.enqueue(skipped), *new, *ends, return_exceptions=True
        )
        assert gone.verdict is Verdict.UPDATED
        assert [type(answer) for answer in answers[:6]] == 6 * [StoreRefused]
        assert all(answer.ours for answer in answers[6:])
        assert stored.keys("job:*") == []
        stored.redis.config_set("maxmemory", 0)


async def test_what_follows_is_handed_out_once_and_again_when_it_is_asked_again():
    async with queue_of_its_own("valkey-9") as (queue, stored):
        leases = await leases_of(queue, posts=2)

        def ends():
            """What a worker sends when it has done all of them, and wants others."""
            common = [1000, 10_000, URI, "c", "[]"]
            calls = ([leased.id, leased.token, "w1", f"t{n}", *common] for n, leased in enumerate(leases))
            return [queue._store.run(STEPS["queue_finish"], stored.prefix, args) for args in calls]

        first = await asyncio.gather(*ends())
        assert {how for how, _ in first} == {b"ours"}
        assert len({following[0] for _, following in first}) == len(ACCOUNTS)
        second = await asyncio.gather(*ends())
        assert {how for how, _ in second} == {b"again"}
        assert [following[0] for _, following in second] == [following[0] for _, following in first]
        assert await queue.take("w1", 100) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_comes_twice_in_a_script_is_given_the_same_twice(kind):
    async with queue_of_its_own(kind) as (queue, stored):
        leases = await leases_of(queue, posts=2)
        common = ["w1", "token", 1000, 10_000, URI, "c", "[]"]
        args = [leases[0].id, leases[0].token, *common]
        answers = await asyncio.gather(
            *(queue._store.run(STEPS["queue_finish"], stored.prefix, args) for _ in range(3))
        )
        assert [how for how, _ in answers] == [b"ours", b"again", b"again"]
        given = {following and following[0] for _, following in answers}
        assert len(given) == 1
        assert None not in given


async def test_what_is_settled_is_settled_whatever_is_in_the_way_of_the_next():
    async with queue_of_its_own("valkey-9") as (queue, stored):
        leases = await leases_of(queue, posts=2)
        stored.redis.rename(stored.key("workers"), "aside")
        stored.redis.set(stored.key("workers"), "no set")
        ends = [queue.finish(leased, URI, "c", following="w1") for leased in leases]
        assert all(answer.ours for answer in await asyncio.gather(*ends))
        stored.redis.rename("aside", stored.key("workers"))


async def test_who_settles_together_does_not_share_what_follows():
    """Two workers and one that stops: each gets for itself, and nothing is handed to who wants nothing."""
    async with queue_of_its_own("valkey-9") as (queue, stored):
        leases = await leases_of(queue, posts=2)
        await worker(queue, "w2", *ACCOUNTS)
        wants = ["w1", "w2", ""]
        ends = [queue.finish(leased, URI, "c", following=wants[n % 3]) for n, leased in enumerate(leases)]
        answers = await asyncio.gather(*ends)
        for number, answer in enumerate(answers):
            held = None if answer.following is None else answer.following.delivery.worker
            assert held == (wants[number % 3] or None)
        left = await queue.take("w1", 100)
        assert len(left) == sum(1 for n in range(len(ACCOUNTS)) if not wants[n % 3])
        assert len(stored.redis.xpending_range(stored.key("bells"), "workers", "-", "+", 100)) == len(
            ACCOUNTS
        )


async def test_what_cannot_be_handed_out_is_passed_over():
    async with queue_of_its_own("valkey-9") as (queue, stored):
        await worker(queue, "w1", *ACCOUNTS)
        await queue.enqueue(submission("first", accounts=("a0",)))
        (leased,) = await queue.take("w1", 10)
        newer, next_one = [
            (await queue.enqueue(submission(name, accounts=(name,)))).job for name in ("a1", "a2")
        ]
        stored.redis.hset(stored.key(f"d:{newer}:a1"), "format", FORMAT + 1)
        (answer,) = await asyncio.gather(queue.finish(leased, URI, "c", following="w1"))
        assert answer.following is not None
        assert answer.following.id == f"{next_one}:a2"


async def test_steps_of_all_kinds_at_once():
    async with queue_of_its_own("valkey-9") as (queue, _stored):
        leases = await leases_of(queue)
        done, failed, job, beat, accepted = await asyncio.gather(
            queue.finish(leases[0], URI, "c"),
            queue.fail(leases[1], "InvalidRequest"),
            queue.read(leases[2].job.id),
            queue.heartbeat("w1"),
            queue.enqueue(submission("new")),
        )
        assert (done.ours, failed.ours, beat) == (True, True, True)
        assert (job.job.id, accepted.verdict) == (leases[2].job.id, Verdict.QUEUED)


async def test_a_worker_with_very_many_accounts_may_introduce_itself():
    async with queue_of_its_own("valkey-9") as (queue, stored):
        await worker(queue, "w1", *(f"account-{number}" for number in range(20_000)))
        assert stored.redis.hlen(stored.key("knows:w1")) == 20_000

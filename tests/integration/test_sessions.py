"""One login for all workers and hosts, for weeks; never one more than needed; secrets nowhere in clear."""

from __future__ import annotations

import asyncio

import pytest

from harness.pds import LOSE_ANSWER
from harness.upstream import xrpc_error
from harness.waiting import until
from integration.publishing import (
    ALICE,
    NO_PAUSE,
    delivery_of,
    post_of,
    publish,
)
from proxy.bluesky import sessions
from proxy.bluesky.sessions import SessionPolicy
from proxy.errors import PdsBusy, StoreUnavailable
from proxy.syndication.attempt import Credentials, Permanent, Published, Transient, Wait

SOON = 10.0


def key_of(world, did=ALICE):
    return f"{world.prefix}sessions:{did}"


async def session_of(world, host):
    return await host.sessions.session(host.login(), world.clock.steady() + SOON)


class TestOneLogin:
    async def test_serves_sixteen_workers_on_three_hosts(self, world):
        hosts = [world.host() for _ in range(3)]
        posts = [post_of(number) for number in range(16)]
        outcomes = await asyncio.gather(
            *(publish(hosts[number % 3], post) for number, post in enumerate(posts))
        )
        assert all(isinstance(outcome, Published) for outcome in outcomes)
        assert world.logins == 1

    async def test_serves_a_host_that_starts_later(self, world):
        await publish(world.host(), post_of(1))
        assert isinstance(await publish(world.host(), post_of(2)), Published)
        assert world.logins == 1

    async def test_is_made_with_the_did(self, world):
        await publish(world.host(), post_of())
        (call,) = world.pds.calls("createSession")
        assert call.json()["identifier"] == ALICE

    async def test_an_expired_token_is_refreshed_once_for_all(self, world):
        hosts = [world.host() for _ in range(3)]
        for host in hosts:
            await session_of(world, host)
        world.pds.expire(ALICE)
        outcomes = await asyncio.gather(
            *(publish(hosts[number % 3], post_of(number)) for number in range(16))
        )
        assert all(isinstance(outcome, Published) for outcome in outcomes)
        assert (world.logins, world.refreshes) == (1, 1)

    async def test_a_session_that_ended_takes_one_login_of_one_host(self, world):
        hosts = [world.host() for _ in range(3)]
        for host in hosts:
            await session_of(world, host)
        world.pds.expire(ALICE, refresh=True)
        outcomes = await asyncio.gather(*(publish(hosts[number % 3], post_of(number)) for number in range(9)))
        assert all(isinstance(outcome, Published) for outcome in outcomes)
        assert (world.logins, world.refreshes) == (2, 1)

    async def test_a_refresh_whose_answer_is_lost_gets_the_same_tokens_again(self, world, alice):
        host = world.host()
        await publish(host, post_of(1))
        world.pds.expire(ALICE)
        world.pds.fail("refreshSession", LOSE_ANSWER)
        assert isinstance(await publish(host, post_of(2)), Transient)
        made = alice.refresh
        assert isinstance(await publish(world.host(), post_of(2)), Published)
        assert (world.logins, world.refreshes) == (1, 2)
        assert alice.refresh == made

    @pytest.mark.parametrize("code", ["InvalidToken", "InvalidRequest", "ExpiredToken"])
    async def test_a_refresh_that_is_refused_takes_a_login(self, world, code):
        host = world.host()
        await publish(host, post_of(1))
        world.pds.expire(ALICE)
        world.pds.fail("refreshSession", xrpc_error(400, code))
        assert isinstance(await publish(host, post_of(2)), Published)
        assert world.logins == 2

    async def test_a_refresh_that_was_never_made_known_holds_nobody_up_for_long(self, world):
        host = world.host(policy=SessionPolicy(hold_s=0.2))
        session = await session_of(world, host)
        world.pds.expire(ALICE)
        # A process takes the right to renew, and dies.
        args = (ALICE, "the dead", session.version, 200, "refresh", "", 0, 0)
        assert await host.store.run(sessions._BEGIN, world.prefix, args) == [b"granted"]
        assert isinstance(await publish(host, post_of()), Published)
        assert world.refreshes == 1

    async def test_the_last_of_a_lease_is_not_spent_on_another_hosts_renewal(self, world):
        host = world.host()
        session = await session_of(world, host)
        world.pds.expire(ALICE)
        args = (ALICE, "another", session.version, 60_000, "refresh", "", 0, 0)
        await host.store.run(sessions._BEGIN, world.prefix, args)
        delivery, job = delivery_of(post := post_of())
        outcome, _ = await host.attempt(delivery, post, job, for_s=0.3)
        assert isinstance(outcome, Wait)


class TestWrongPasswords:
    def wrong(self, world):
        return world.accounts(password="a wrong one, tried once")

    async def test_are_tried_once_by_one_host(self, world):
        hosts = [world.host(accounts=self.wrong(world)) for _ in range(3)]
        for _ in range(3):
            for host in hosts:
                outcome = await publish(host, post_of())
                assert isinstance(outcome, Credentials)
        assert world.logins == 1
        assert world.directory.reads(ALICE) >= 1

    async def test_side_by_side_too(self, world):
        hosts = [world.host(accounts=self.wrong(world)) for _ in range(3)]
        outcomes = await asyncio.gather(*(publish(hosts[n % 3], post_of(n)) for n in range(9)))
        assert all(isinstance(outcome, Credentials) for outcome in outcomes)
        assert world.logins == 1

    async def test_the_right_one_works_at_once(self, world):
        host = world.host(accounts=self.wrong(world), policy=SessionPolicy())
        assert isinstance(await publish(host, post_of()), Credentials)
        host.configure(world.accounts())
        assert isinstance(await publish(host, post_of()), Published)
        assert world.logins == 2

    async def test_a_new_one_does_not_go_on_with_the_tokens_of_the_old(self, world, alice):
        host = world.host()
        await publish(host, post_of(1))
        alice.password = "a new password"
        host.configure(world.accounts(password="a new password"))
        assert isinstance(await publish(host, post_of(2)), Published)
        assert world.logins == 2

    async def test_a_person_may_have_it_tried_again(self, world, alice):
        host = world.host(accounts=self.wrong(world), policy=SessionPolicy())
        assert isinstance(await publish(host, post_of()), Credentials)
        alice.password = "a wrong one, tried once"
        assert isinstance(await publish(host, post_of()), Credentials)
        await host.sessions.forgive(host.login(), world.clock.steady() + SOON)
        assert isinstance(await publish(host, post_of()), Published)
        assert world.logins == 2

    async def test_a_program_that_has_it_tried_for_ever_locks_nobody_out(self, world, raw):
        policy = SessionPolicy(forgiven_an_hour=2)
        host = world.host(accounts=self.wrong(world), policy=policy)
        deadline = world.clock.steady() + SOON
        outcomes = []
        for _ in range(6):
            outcomes.append(await publish(host, post_of()))
            await host.sessions.forgive(host.login(), deadline)
        assert [type(outcome) for outcome in outcomes] == [*[Credentials] * 3, *[Wait] * 3]
        assert world.logins == 3
        # An hour later a person may again.
        for name in ("forgiven_since", "login_after"):
            raw.hincrby(key_of(world), name, -3_700_000)
        raw.hset(key_of(world), "refused", "x")
        await host.sessions.forgive(host.login(), deadline)
        assert isinstance(await publish(host, post_of()), Credentials)
        assert world.logins == 4

    async def test_what_the_server_asked_for_is_not_forgiven(self, world):
        fault = xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": "290"})
        world.pds.fail("createSession", fault)
        host = world.host(policy=SessionPolicy())
        for _ in range(2):
            assert isinstance(await publish(host, post_of()), Wait)
            await host.sessions.forgive(host.login(), world.clock.steady() + SOON)
        assert isinstance(await publish(host, post_of()), Wait)
        assert world.logins == 1

    async def test_a_changed_password_voids_the_session_for_who_has_the_old(self, world, alice):
        await publish(world.host(), post_of(1))
        alice.password = "a new password"
        host = world.host(accounts=world.accounts(password="a new password"))
        assert isinstance(await publish(host, post_of(2)), Published)
        assert world.logins == 2
        late = world.host()
        assert isinstance(await publish(late, post_of(3)), Credentials)
        assert isinstance(await publish(late, post_of(3)), Credentials)
        assert world.logins == 3

    async def test_a_host_with_the_old_password_goes_on_with_its_tokens(self, world, alice):
        old = world.host()
        await publish(old, post_of(1))
        alice.password = "a new password"
        await publish(world.host(accounts=world.accounts(password="a new password")), post_of(2))
        account = world.pds.accounts[ALICE]
        account.old_refresh = ""
        assert isinstance(await publish(old, post_of(3)), Credentials | Published)
        assert world.logins <= 3

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (401, "AccountTakedown"),
            (401, "AuthFactorTokenRequired"),
            (401, "Whatever"),
            (400, "InvalidRequest"),
            (400, "InvalidToken"),
        ],
    )
    async def test_what_else_a_person_must_see_to_is_not_tried_again_either(self, world, status, code):
        world.pds.fail("createSession", xrpc_error(status, code, "see to it"))
        host = world.host()
        for _ in range(3):
            outcome = await publish(host, post_of())
            assert isinstance(outcome, Credentials)
        assert world.logins == 1


class TestSparingLogins:
    PAUSED = SessionPolicy(login_pause_s=120, longest_login_pause_s=3600)

    async def test_one_that_failed_is_not_repeated_for_minutes(self, world):
        world.pds.fail("createSession", xrpc_error(500, "InternalServerError"))
        hosts = [world.host(policy=self.PAUSED) for _ in range(2)]
        assert isinstance(await publish(hosts[0], post_of()), Transient)
        for host in hosts:
            outcome = await publish(host, post_of())
            assert isinstance(outcome, Wait)
            assert outcome.for_s == pytest.approx(120, abs=5)
        assert world.logins == 1

    async def test_the_pause_doubles(self, world, raw):
        host = world.host(policy=self.PAUSED)
        pauses = []
        for _ in range(7):
            world.pds.fail("createSession", xrpc_error(500, "InternalServerError"))
            await publish(host, post_of())
            pauses.append((await publish(host, post_of())).for_s)
            raw.hset(key_of(world), "login_after", 0)
        expected = [120, 240, 480, 960, 1920, 3600, 3600]
        assert pauses == pytest.approx(expected, abs=5)

    async def test_a_lost_answer_counts_as_made(self, world):
        world.pds.fail("createSession", LOSE_ANSWER)
        host = world.host(policy=self.PAUSED)
        assert isinstance(await publish(host, post_of()), Transient)
        assert isinstance(await publish(host, post_of()), Wait)

    async def test_one_that_never_left_does_not(self, world):
        host = world.host(policy=self.PAUSED)
        await world.pds.stop()
        for _ in range(3):
            assert isinstance(await publish(host, post_of()), Transient)
        await world.pds.start()
        assert isinstance(await publish(host, post_of()), Published)
        assert world.logins == 1

    async def test_a_429_at_login_is_heeded_by_all(self, world):
        fault = xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": "290"})
        world.pds.fail("createSession", fault)
        for _ in range(2):
            outcome = await publish(world.host(policy=self.PAUSED), post_of())
            assert isinstance(outcome, Wait)
            assert outcome.for_s == pytest.approx(290, abs=5)
        assert world.logins == 1

    async def test_a_login_used_up_holds_up_no_writes(self, world):
        world.pds.headers = {"RateLimit-Remaining": "0", "RateLimit-Reset": "300"}
        host = world.host()
        session = await session_of(world, host)
        world.pds.headers = {}
        assert session.did == ALICE
        assert isinstance(await publish(host, post_of()), Published)

    async def test_logins_are_counted(self, world, raw):
        await publish(world.host(), post_of())
        assert raw.hget(key_of(world), "logins") == b"1"


class TestTheStoreAway:
    async def test_two_hundred_posts_need_no_login(self, world):
        host = world.host()
        await publish(host, post_of(0))
        host.store.away = True
        for number in range(1, 201):
            assert isinstance(await publish(host, post_of(number)), Published)
        assert (world.logins, world.refreshes) == (1, 0)

    async def test_the_session_of_another_host_is_recalled_ahead(self, world):
        host, other = world.host(), world.host()
        await other.sessions.recall(other.login())
        assert not await other.sessions.remembered(other.login())
        await publish(host, post_of(1))
        for _ in range(2):
            await other.sessions.recall(other.login())
            world.pds.expire(ALICE)
            await publish(host, post_of(2))
        await other.sessions.recall(other.login())
        other.store.away = True
        assert await other.sessions.remembered(other.login())
        assert isinstance(await publish(other, post_of(3)), Published)
        assert (world.logins, world.refreshes) == (1, 2)

    async def test_what_is_recalled_does_not_replace_what_was_renewed_meanwhile(self, world):
        host = world.host()
        await publish(host, post_of(1))
        host.store.away = True
        world.pds.expire(ALICE)
        await publish(host, post_of(2))
        host.store.away = False
        await host.sessions.recall(host.login())
        assert isinstance(await publish(host, post_of(3)), Published)
        assert (world.logins, world.refreshes) == (1, 1)

    async def test_without_a_session_in_memory_there_is_no_login(self, world):
        host = world.host()
        host.store.away = True
        with pytest.raises(StoreUnavailable):
            await publish(host, post_of())
        assert world.logins == 0

    async def test_a_token_that_expires_is_refreshed_and_shared_when_it_is_back(self, world):
        host, other = world.host(), world.host()
        await publish(host, post_of(1))
        host.store.away = True
        for number in (2, 3):
            world.pds.expire(ALICE)
            assert isinstance(await publish(host, post_of(number)), Published)
        host.store.away = False
        await publish(host, post_of(4))
        world.pds.accounts[ALICE].old_refresh = ""  # the grace period is over
        assert isinstance(await publish(other, post_of(5)), Published)
        assert (world.logins, world.refreshes) == (1, 2)

    async def test_workers_of_a_process_still_refresh_once(self, world):
        host = world.host()
        await publish(host, post_of(0))
        host.store.away = True
        world.pds.expire(ALICE)
        outcomes = await asyncio.gather(*(publish(host, post_of(number)) for number in range(1, 7)))
        assert all(isinstance(outcome, Published) for outcome in outcomes)
        assert (world.logins, world.refreshes) == (1, 1)

    async def test_a_session_that_has_ended_waits_for_the_store(self, world):
        host = world.host()
        await publish(host, post_of(1))
        host.store.away = True
        world.pds.expire(ALICE, refresh=True)
        with pytest.raises(StoreUnavailable):
            await publish(host, post_of(2))
        assert world.logins == 1

    async def test_lost_with_everything_in_it_there_is_no_login(self, world):
        host = world.host()
        await publish(host, post_of(1))
        world.store.delete_all()
        world.pds.expire(ALICE)
        assert isinstance(await publish(host, post_of(2)), Published)
        assert isinstance(await publish(world.host(), post_of(3)), Published)
        assert (world.logins, world.refreshes) == (1, 1)

    @pytest.mark.parametrize("name", ["session_save", "pin"])
    async def test_an_answer_lost_on_the_way_loses_no_session(self, world, name):
        host = world.host()
        host.store.lost.add(name)
        for number in (1, 2):
            assert isinstance(await publish(host, post_of(number)), Published)
        host.store.lost.clear()
        assert isinstance(await publish(world.host(), post_of(3)), Published)
        assert world.logins == 1

    async def test_an_answer_lost_before_a_login_makes_no_second(self, world):
        host = world.host(policy=SessionPolicy(hold_s=0.2))
        host.store.lost.add("session_begin")
        with pytest.raises(StoreUnavailable):
            await publish(host, post_of())
        host.store.lost.clear()
        outcome = await publish(host, post_of())
        assert isinstance(outcome, Wait)
        assert world.logins == 0


async def test_a_login_under_way_is_waited_for_by_the_others(world):
    """Hosts that start together log in once, even if that takes its time."""
    answer = world.pds.answer

    def slow(call):
        response = answer(call)
        response.delay_s = 0.3 if call.name == "createSession" else 0.0
        return response

    world.pds.answer = slow
    hosts = [world.host(policy=NO_PAUSE) for _ in range(4)]
    outcomes = await asyncio.gather(*(publish(host, post_of(n)) for n, host in enumerate(hosts)))
    await until(lambda: all(isinstance(outcome, Published) for outcome in outcomes))
    assert world.logins == 1
    assert not any(isinstance(outcome, Permanent | PdsBusy) for outcome in outcomes)

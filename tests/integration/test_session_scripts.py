"""The scripts of sessions, on each kind of server: sent twice they do what they do once."""

from __future__ import annotations

import asyncio

import pytest

from integration.publishing import ALICE, BOB, post_of, publish, session_key
from proxy.bluesky import sessions
from proxy.bluesky.pins import _PIN
from proxy.syndication.attempt import Published


@pytest.fixture(scope="module")
def valkey_url(server):
    return server.url


async def test_one_login_and_one_refresh_for_two_hosts(world):
    hosts = [world.host() for _ in range(2)]
    for number in (0, 10):
        outcomes = await asyncio.gather(*(publish(hosts[n % 2], post_of(number + n)) for n in range(6)))
        assert all(isinstance(outcome, Published) for outcome in outcomes)
        world.pds.expire(ALICE)
    assert (world.logins, world.refreshes) == (1, 1)


async def test_each_answers_the_same_and_counts_once(world, raw):
    store = world.host().store

    async def twice(script, *args):
        first = await store.run(script, world.prefix, args)
        before = raw.hgetall(session_key(world))
        second = await store.run(script, world.prefix, args)
        after = raw.hgetall(session_key(world))
        before.pop(b"held_until", None)
        after.pop(b"held_until", None)
        assert before == after
        return first, second

    begin = (ALICE, "asker", "", 15_000, "login", "key", 120_000, 3_600_000)
    assert await twice(sessions._BEGIN, *begin) == ([b"granted"], [b"granted"])
    assert raw.hget(session_key(world), "logins") == b"1"
    saved = await twice(sessions._SAVE, ALICE, "asker", "", "v1", b"sealed")
    assert saved == ([b"saved"], [b"saved"])
    begin = (ALICE, "second", "v1", 15_000, "login", "other", 120_000, 3_600_000)
    assert await twice(sessions._BEGIN, *begin) == ([b"granted"], [b"granted"])
    assert await twice(sessions._END, ALICE, "second", "refused", 0) == (1, 0)
    assert await twice(sessions._FORGIVE, ALICE, 5) == (1, 1)


async def test_a_save_that_comes_too_late_takes_over_what_is_there(world):
    store = world.host().store
    await store.run(sessions._SAVE, world.prefix, (ALICE, "one", "", "v1", b"first"))
    late = await store.run(sessions._SAVE, world.prefix, (ALICE, "two", "", "v2", b"second"))
    assert late == [b"changed", b"v1", b"first"]


async def test_who_may_not_log_in_gives_the_right_to_renew_back(world, raw):
    store = world.host().store

    async def begin(asker, version, kind):
        args = (ALICE, asker, version, 15_000, kind, "key", 120_000, 3_600_000)
        return await store.run(sessions._BEGIN, world.prefix, args)

    await begin("one", "", "login")
    await store.run(sessions._SAVE, world.prefix, (ALICE, "one", "", "v1", b"sealed"))
    assert await begin("two", "v1", "refresh") == [b"granted"]
    verdict, left_ms = await begin("two", "v1", "login")
    assert verdict == b"wait"
    assert 0 < left_ms <= 120_000
    assert raw.hget(session_key(world), "holder") is None


async def test_a_login_that_worked_clears_what_failed_before(world, raw):
    store = world.host().store
    raw.hset(session_key(world), mapping={"refused": "key", "logins_failed": 5})
    await store.run(sessions._SAVE, world.prefix, (ALICE, "one", "", "v1", b"sealed"))
    assert raw.hmget(session_key(world), "refused", "logins_failed") == [None, None]


async def test_a_login_that_was_never_made_is_not_counted(world, raw):
    store = world.host().store
    args = (ALICE, "one", "", 15_000, "login", "key", 120_000, 3_600_000)
    await store.run(sessions._BEGIN, world.prefix, args)
    assert raw.hmget(session_key(world), "logins", "logins_failed") == [b"1", b"1"]
    await store.run(sessions._END, world.prefix, (ALICE, "one", "unmade", 0))
    assert raw.hmget(session_key(world), "logins", "logins_failed", "login_after") == [b"0", b"0", b"0"]


async def test_the_first_pin_holds(world):
    store = world.host().store
    notes = [
        ("", ""),
        (BOB, "resolved"),
        (ALICE, "resolved"),
        (ALICE, "pins"),
        (BOB, "pins"),
        (BOB, "resolved"),
    ]
    pins = [await store.run(_PIN, world.prefix, ("alice.test", *note)) for note in notes]
    alice, bob = ALICE.encode(), BOB.encode()
    assert pins == [[b"", b""], [b"", bob], [b"", alice], *[[alice, b""]] * 3]

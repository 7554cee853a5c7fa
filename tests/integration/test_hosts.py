"""Several hosts around one store: with other data directories, other accounts, other versions."""

from __future__ import annotations

import contextlib

import pytest

from harness.newsroom import Newsroom
from harness.waiting import until
from proxy.syndication import accounts

HOUR_S = 3600


@pytest.fixture
async def room(store, tmp_path):
    async with Newsroom(store.url, store.namespace, tmp_path).open() as room:
        yield room
        assert room.stored.faults() == []


async def test_sixteen_workers_on_three_hosts_refresh_an_expired_token_once(room, monkeypatch):
    """At the same time: the account has sixteen names, so that its deliveries do not wait for each other."""
    monkeypatch.setattr(accounts, "_SCRYPT_N", 2)  # or 48 fingerprints take longer than the rest
    names = {f"name{number}": "alice.test" for number in range(16)}
    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(room.host(names, {"blog": list(names)})) for _ in range(3)]
        assert len({host.settings.data_dir for host in hosts}) == 3
        for host, count in zip(hosts, (6, 5, 5), strict=True):
            await stack.enter_async_context(host.working(count))

        async def published(number):
            job = (await hosts[number % 3].send(hosts[0].post(number))).json()

            async def over():
                return (await hosts[0].ask(job["links"]["self"])).json()["status"] == "completed"

            await until(over)

        await published(0)
        assert (room.logins, room.refreshes) == (1, 0)
        for rounds in range(1, 4):
            room.alices.expire(room.alice)
            await published(rounds)
            assert (room.logins, room.refreshes) == (1, rounds)
    assert len(room.alices.commits) == 4


async def test_an_account_that_one_host_alone_knows_fails_nowhere(room):
    """Each host has a worker; what one cannot serve waits for the other, also while that is away."""
    ours, theirs = {"main": "alice.test"}, {"main": "alice.test", "side": "bob.test"}
    async with (
        room.host(ours) as one,
        room.host(theirs, {"blog": ["main", "side"]}) as other,
        one.working(2),
    ):
        job = (await other.send()).json()
        await other.until_shown(job, status="completed")
        # An hour goes by, in which the only workers have never heard of the account.
        for _ in range(4):
            room.stored.let_time_pass(HOUR_S / 4)
            await one.posts.queue.promote()
            await until(lambda: room.stored.scores("orphans").get("side"))
        shown = await other.shown(job, "side")
        assert (shown["status"], shown["attempts"], shown["error"]) == ("pending", 0, None)
        async with other.working():
            room.stored.let_time_pass(HOUR_S)
            await other.until_shown(job, "side", status="completed")
            # With both at work it does not matter who is asked first.
            for number in range(2, 12):
                both = (await other.send(other.post(number))).json()
                for account in ("main", "side"):
                    done = await other.until_shown(both, account, status="completed")
                    assert (done["attempts"], done["error"]) == (1, None)
    assert len(room.bobs.commits) == len(room.alices.commits) == 11


async def test_an_account_without_its_password_on_one_host_fails_nowhere(room):
    async with room.host() as one, room.host() as other:
        one.posts.book.current._credentials.clear()
        async with one.working():
            job = (await one.send()).json()
            await until(lambda: room.stored.scores("orphans").get("main"))
            assert (await one.shown(job))["status"] == "pending"
            async with other.working():
                room.stored.let_time_pass(60)
                done = await one.until_shown(job, status="completed")
    assert (done["attempts"], room.logins) == (1, 1)

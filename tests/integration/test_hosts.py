"""Several hosts around one store: with other data directories, other accounts, other versions."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import httpx
import pytest

from harness.newsroom import PASSWORD, UNHURRIED, HostOfTest, Newsroom, token_of
from harness.waiting import until
from integration.processes import ServeProcess
from proxy.syndication import accounts
from proxy.syndication.job import FORMAT

HOUR_S = 3600
NEWER = Path(__file__).with_name("newer.py")


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


async def test_two_versions_work_on_one_store_side_by_side(room, monkeypatch, tmp_path):
    """The next version writes another format; each host takes posts in and has a worker, as in an upgrade."""
    for name, secret in (
        ("PASSWORD_main", PASSWORD),
        ("PASSWORD_side", PASSWORD),
        ("TOKEN_blog", token_of("blog")),
    ):
        monkeypatch.setenv(name, secret)
    async with room.host() as host, contextlib.AsyncExitStack() as stack:
        settings = {
            "REDIS_URL": room.url,
            "NAMESPACE": room.namespace,
            "UPSTREAM": room.directory.url,
            "PLC_URL": room.directory.url,
            "CONFIG": host.settings.config,
            **UNHURRIED,
        }

        def newer(role):
            command = (sys.executable, "-P", str(NEWER), role)
            return ServeProcess(tmp_path / f"newer {role}", command=command, **settings)

        web = stack.enter_context(newer("serve"))
        await asyncio.to_thread(web.wait_ready)
        client = httpx.AsyncClient(base_url=web.base_url, trust_env=False, verify=False)
        newer_host = HostOfTest(
            await stack.enter_async_context(client), host.posts, host.settings, host.board
        )
        theirs, ours = [], []
        for number in range(5):
            theirs.append((await newer_host.send(host.post(number))).json())
            ours.append((await host.send(host.post(10 + number))).json())
        assert {room.stored.hash(f"job:{job['id']}")["format"] for job in theirs} == {str(FORMAT + 1)}
        async with host.working():
            # The old worker does what it knows and leaves the rest alone, wherever it stands in the row.
            for job in ours:
                await newer_host.until_shown(job, status="completed")
            for job in theirs:
                shown = await newer_host.shown(job)
                assert (shown["status"], shown["attempts"], shown["error"]) == ("pending", 0, None)
            # The old intake says that they are there, and that it cannot say more.
            told = await host.ask(theirs[0]["links"]["self"])
            assert (told.status_code, told.json()["code"]) == (503, "store_unavailable")
            assert "later version" in told.json()["detail"]
            sent_again = await host.send({**host.post(1, title="Mended"), "revision": 2})
            assert (sent_again.status_code, sent_again.json()["id"]) == (202, theirs[1]["id"])
            # Then the new one's worker comes, and both are at work.
            stack.enter_context(newer("worker"))
            for job in theirs:
                await newer_host.until_shown(job, status="completed")
        # The old one's is gone, its intake not yet.
        for number in range(20, 25):
            job = (await host.send(host.post(number))).json()
            await host.until_shown(job, status="completed")
        assert "error" not in {event.get("level") for event in web.events()}
    assert len(room.alices.commits) == len(room.alices.accounts[room.alice].records) == 15
    titles = [value["text"].partition("\n")[0] for value in room.alices.posts(room.alice)]
    assert titles.count("Mended") == 1
    assert room.logins == 1

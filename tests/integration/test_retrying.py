"""A person has a job tried again, and what each such wish costs an account: one login, never a loop."""

from __future__ import annotations

import asyncio

import pytest

from harness.newsroom import PASSWORD, Newsroom
from harness.upstream import xrpc_error
from harness.waiting import until


@pytest.fixture
async def room(store, tmp_path):
    async with Newsroom(store.url, store.namespace, tmp_path).open() as room:
        yield room


@pytest.fixture
def alice(room):
    return room.alices.accounts[room.alice]


async def parked(host, job):
    """Return once the job waits for a person."""
    await host.until_shown(job, waiting_for="credentials", status="pending")


async def test_a_refused_password_is_tried_once_more_for_each_retry(room, alice):
    alice.password = "another one"
    async with room.host() as host, host.working(2):
        job = (await host.send()).json()
        await parked(host, job)
        assert "AuthenticationRequired" in (await host.shown(job))["error"]
        assert room.logins == 1
        for logins in (2, 3):
            answer = await host.ask(job["links"]["retry"], method="POST")
            assert (answer.status_code, answer.json()["status"]) == (202, "pending")
            await until(lambda wanted=logins: room.logins == wanted)
            await parked(host, job)
        # Neither other posts nor workers that come and go are a reason to log in.
        other = (await host.send(host.post(2))).json()
        for worker in host.workers:
            worker.reload()
        async with host.working():
            await parked(host, other)
        assert room.logins == 3
        alice.password = PASSWORD
        assert (await host.ask(job["links"]["retry"], method="POST")).status_code == 202
        for each in (job, other):
            assert (await host.until_shown(each, status="completed"))["uri"] is not None
        assert (await host.ask(job["links"]["retry"], method="POST")).json()["code"] == "nothing_to_retry"
    assert (room.logins, len(alice.records)) == (4, 2)
    assert room.stored.faults() == []


async def test_a_retry_at_a_host_without_the_password_serves_as_well(room, alice):
    alice.password = "another one"
    async with room.host() as host, room.host() as office, host.working():
        del office.posts.book.current._credentials["main"]
        job = (await office.send()).json()
        await parked(office, job)
        alice.password = PASSWORD
        assert (await office.ask(job["links"]["retry"], method="POST")).status_code == 202
        await office.until_shown(job, status="completed")
    assert room.logins == 2


async def test_an_account_that_was_closed_for_a_while_needs_no_login(room, alice):
    """Deactivated after its login: the session is still good once it is back."""
    async with room.host() as host, host.working():
        await host.until_shown((await host.send()).json(), status="completed")
        alice.trouble = "AccountDeactivated"
        job = (await host.send(host.post(2))).json()
        await host.until_shown(job, waiting_for="credentials")
        alice.trouble = ""
        await host.ask(job["links"]["retry"], method="POST")
        await host.until_shown(job, status="completed")
    assert room.logins == 1


async def test_what_has_failed_on_one_account_and_is_parked_on_another_is_all_tried_again(room, alice):
    room.bobs.fail("putRecord", xrpc_error(400, "InvalidRequest", "no"))
    alice.password = "another one"
    async with room.host(sites={"blog": ["main", "side"]}) as host, host.working():
        job = (await host.send()).json()
        await parked(host, job)
        await host.until_shown(job, "side", status="failed")
        alice.password = PASSWORD
        await asyncio.gather(*(host.ask(job["links"]["retry"], method="POST") for _ in range(3)))
        for account in ("main", "side"):
            await host.until_shown(job, account, status="completed")
    assert len(room.alices.calls("createSession")) == 2
    assert len(room.bobs.calls("createSession")) == 1


async def test_canceled_posts_open_no_account(room, alice):
    alice.password = "another one"
    room.bobs.fail("putRecord", xrpc_error(400, "InvalidRequest", "no"))
    async with room.host(sites={"blog": ["main", "side"]}) as host, host.working():
        job = (await host.send()).json()
        await parked(host, job)
        await host.until_shown(job, "side", status="failed")
        await host.ask(job["links"]["self"], method="DELETE")
        before = room.stored.hash("account:main")
        assert (await host.ask(job["links"]["retry"], method="POST")).status_code == 409
        assert (await host.shown(job))["status"] == "canceled"
        assert room.stored.hash("account:main") == before
        assert before["gate_reason"] == "credentials"
    assert len(room.alices.calls("createSession")) == 1

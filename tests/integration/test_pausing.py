"""Pause, restart everything, resume: nothing lost, order kept; with `serve`, its store and its commands."""

from __future__ import annotations

import asyncio

import pytest

from harness.pds import Directory, PdsServer
from integration.deployment import AccountOfTest, Deployment
from integration.publishing import ALICE, BOB, PASSWORD

# Many processes, on a machine that may be busy with other things.
pytestmark = pytest.mark.timeout(600)

ADMIN_TOKEN = "an-admin-token-of-32-characters-x"


@pytest.fixture
async def pds():
    async with Directory() as directory, PdsServer(directory) as server:
        server.host(ALICE, "alice.test", PASSWORD)
        server.host(BOB, "bob.test", PASSWORD)
        yield server


def texts(pds, did):
    """What stands on the account, in the order in which it came there."""
    return [record["text"].partition("\n")[0] for record in pds.posts(did)]


async def test_nothing_is_lost_and_the_order_kept(pds, tmp_path):
    accounts = [
        AccountOfTest(name="alice", identifier="alice.test", password=PASSWORD),
        AccountOfTest(name="bob", identifier="bob.test", password=PASSWORD),
    ]
    addresses = {"PLC_URL": pds.directory.url, "UPSTREAM": pds.directory.url, "ADMIN_TOKEN": ADMIN_TOKEN}
    deployment = Deployment(tmp_path, None, accounts, **addresses)
    await asyncio.to_thread(deployment.__enter__)
    try:
        await asyncio.to_thread(pause_restart_and_resume, deployment, pds)
    finally:
        await asyncio.to_thread(deployment.__exit__, None, None, None)
    wanted = [f"Post {number}" for number in (0, 1, 2, 3, 4, 5, 7)]
    assert texts(pds, ALICE) == texts(pds, BOB) == wanted
    assert len(pds.commits) == 2 * len(wanted)


def pause_restart_and_resume(deployment, pds):
    deployment.ended(deployment.post(0))
    said(deployment, "pause")
    jobs = [deployment.post(number) for number in range(1, 6)]
    deployment.waits_for(jobs[-1], "paused")

    # The pause holds, and posts are taken in.
    deployment.restart()
    deployment.serve.wait_event("worker_ready")
    unwanted = deployment.post(6)
    jobs.append(deployment.post(7))
    deployment.waits_for(jobs[-1], "paused")
    assert texts(pds, ALICE) == texts(pds, BOB) == ["Post 0"]
    shown = admin(deployment, "GET", f"jobs/{jobs[-1]['id']}")
    codes = [[cause["code"] for cause in account["waiting_for"]] for account in shown["accounts"]]
    assert [each[:2] for each in codes] == [["turn", "paused"]] * 2
    assert [account["position"] for account in shown["accounts"]] == [7, 7]
    admin(deployment, "DELETE", f"jobs/{unwanted['id']}")
    queue = admin(deployment, "GET", "queue")
    assert (queue["paused"], [account["waiting"] for account in queue["accounts"]]) == (True, [6, 6])

    said(deployment, "resume")
    for job in jobs:
        assert deployment.ended(job)["status"] == "completed"


def admin(deployment, method, path):
    answer = deployment.client.request(
        method, f"/admin/{path}", headers={"authorization": f"Bearer {ADMIN_TOKEN}"}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(deployment, *arguments):
    """What the command prints; it must succeed."""
    done = deployment.command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout

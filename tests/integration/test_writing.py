"""From a CMS's request to the record on the PDS: one for each post, whatever is sent in whichever order."""

from __future__ import annotations

import asyncio
import random

import pytest

from harness.newsroom import Newsroom, published_at
from harness.waiting import until


@pytest.fixture
async def room(store, tmp_path):
    async with Newsroom(store.url, store.namespace, tmp_path).open() as room:
        yield room
        assert room.stored.faults() == []


@pytest.fixture
def alice(room):
    return room.alices.accounts[room.alice]


def texts(account):
    """The first line of each record."""
    return [value["text"].partition("\n")[0] for value, _ in account.records.values()]


async def test_a_thousand_at_once_with_one_key_are_one_record(room, alice):
    async with room.host() as host, room.host() as other, host.working(2), other.working():
        await until(lambda: host.posts.pins.known("alice.test"))
        document = host.post()
        answers = await asyncio.gather(
            *((host, other)[number % 2].send(document, idempotency_key="k") for number in range(1000))
        )
        assert {(answer.status_code, answer.text) for answer in answers} == {(202, answers[0].text)}
        another = await other.send({**document, "title": "Another"}, idempotency_key="k")
        assert (another.status_code, another.json()["code"]) == (422, "idempotency_key_reused")
        job = answers[0].json()
        done = await host.until_shown(job, status="completed")
        assert (await host.ask("/syndicate")).json()["jobs"][0]["id"] == job["id"]
    assert texts(alice) == ["Post 1"]
    assert done["uri"] == f"at://{room.alice}/app.bsky.feed.post/{next(iter(alice.records))}"
    assert (len(room.stored.folded()), room.stored.keys("job:*")) == (1, [])


async def test_revisions_in_any_order_while_the_account_is_parked_end_as_the_highest(room, alice):
    right, alice.password = alice.password, "another one"
    revisions = list(range(1, 51))
    random.Random(7).shuffle(revisions)
    async with room.host() as host, host.working():
        first, *others = revisions
        job = (await host.send(host.post(revision=first, title=f"Revision {first}"))).json()
        await host.until_shown(job, waiting_for="credentials")
        for revision in others:
            answer = await host.send(host.post(revision=revision, title=f"Revision {revision}"))
            assert (answer.status_code, answer.json()["id"]) == (202, job["id"])
        alice.password = right
        await host.ask(job["links"]["retry"], method="POST")
        await host.until_shown(job, status="completed")
        assert (await host.ask(job["links"]["self"])).json()["revision"] == 50
        late = await host.send(host.post(revision=49, title="Revision 49"))
        assert (late.status_code, late.json()["id"]) == (202, job["id"])
        assert late.json()["warnings"]
    assert texts(alice) == ["Revision 50"]


async def test_what_is_mended_while_it_waits_goes_out_mended_and_what_is_withdrawn_does_not(room, alice):
    async with room.host() as host, host.working():
        await host.posts.queue.pause("main", paused=True)
        for number in range(3):
            await host.send(host.post(number, title=f"Psot {number}"))
        mended = (await host.send(host.post(0, title="Post 0"))).json()
        drafted = (await host.send(host.post(1, status="draft", previous_status="publish"))).json()
        switched_off = (await host.send(host.post(2, syndicate=False))).json()
        jobs = (mended, drafted, switched_off)
        assert [job["status"] for job in jobs] == ["pending", "canceled", "canceled"]
        await host.posts.queue.pause("main", paused=False)
        await host.until_shown(mended, status="completed")
        # What comes behind them is published: they would have been, too.
        await host.until_shown((await host.send(host.post(3))).json(), status="completed")
    assert texts(alice) == ["Post 0", "Post 3"]


async def test_a_new_site_that_uses_ids_again_is_told_what_to_do(room, alice):
    async with room.host() as host, host.working():
        old = (await host.send(host.post(published_at=published_at(3600)))).json()
        await host.until_shown(old, status="completed")
        reused = {"url": "https://blog.example/anew", "title": "Anew", "published_at": published_at(60)}
        for status in ("publish", "draft"):
            answer = await host.send(host.post(status=status, **reused))
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (409, "id_reused")
            assert "site of its own in feedproxy.toml" in problem["detail"]
        assert (await host.ask("/syndicate")).json()["jobs"][0]["id"] == old["id"]
        await host.until_shown((await host.send(host.post(2))).json(), status="completed")
    assert texts(alice) == ["Post 1", "Post 2"]

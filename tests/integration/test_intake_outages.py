"""Without the store: one attempt at once, else 503; and how safe a 202 is while it is there."""

from __future__ import annotations

import pytest

from harness.intake import assert_problem, rfc3339, running_office
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.syndication.attempt import Published


@pytest.fixture
async def office(clock):
    async with running_office(clock) as office:
        yield office


@pytest.mark.parametrize(
    ("fault", "code"), [(StoreUnavailable, "store_unavailable"), (StoreRefused, "store_full")]
)
async def test_without_the_store_every_answer_is_503_with_retry_after(office, fault, code):
    job = (await office.send()).json()["links"]["self"]
    office.desk.fault = fault("redis://:secret@10.0.0.1")
    for answer in (
        await office.send(office.post(id="2")),
        await office.send([office.post(id="2")], path="/syndicate/batch"),
        await office.ask("/syndicate"),
        await office.ask(job),
        await office.ask(f"{job}?wait=60"),
        await office.ask(f"{job}/events"),
        await office.ask(f"{job}/retry", method="POST"),
        await office.ask(job, method="DELETE"),
    ):
        assert_problem(answer, 503, code)
        assert int(answer.headers["retry-after"]) > 0
        assert "secret" not in answer.text


class Recorder:
    """A synchronous attempt that succeeds on some accounts."""

    def __init__(self, *succeed):
        self.succeed = succeed
        self.calls = []

    async def __call__(self, site, post, accounts):
        self.calls.append((site.name, post.id, tuple(accounts)))
        return {name: Published(uri=f"at://did:plc:{name}/x/y", cid="bafy") for name in self.succeed}


async def test_without_the_store_one_attempt_is_made_at_once(clock):
    publish = Recorder("main", "side")
    async with running_office(clock, publish_now=publish) as office:
        office.desk.fault = StoreUnavailable("away")
        answer = await office.send(office.post(colour="red"))
        body = answer.json()
        assert (answer.status_code, body["id"], body["status"]) == (200, None, "completed")
        assert [(a["account"], a["did"], a["uri"], a["cid"]) for a in body["accounts"]] == [
            ("main", "did:plc:main", "at://did:plc:main/x/y", "bafy"),
            ("side", "did:plc:side", "at://did:plc:side/x/y", "bafy"),
        ]
        assert body["warnings"]
        await office.send(office.post(accounts=["side", "side"]))
        assert publish.calls == [("blog", "1", ("main", "side")), ("blog", "1", ("side",))]


async def test_half_an_attempt_is_no_202(clock):
    publish = Recorder("main")
    async with running_office(clock, publish_now=publish) as office:
        office.desk.fault = StoreUnavailable("away")
        assert_problem(await office.send(), 503, "store_unavailable")
        assert len(publish.calls) == 1
        # Who knows whether these would cancel, wait or be skipped; and a batch would take too long.
        for changes in (
            {"status": "draft"},
            {"published_at": rfc3339(clock.wall() + 60)},
            {"syndicate": False},
        ):
            assert_problem(await office.send(office.post(**changes)), 503, "store_unavailable")
        batch = await office.send([office.post()], path="/syndicate/batch")
        assert_problem(batch, 503, "store_unavailable")
        office.desk.fault = StoreRefused("out of memory")
        assert_problem(await office.send(), 503, "store_full")
        assert len(publish.calls) == 1


async def test_a_batch_whose_store_goes_away_says_what_was_stored(office):
    enqueue = office.desk.enqueue
    calls = 0

    async def failing(submission):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise StoreUnavailable("away")
        return await enqueue(submission)

    office.desk.enqueue = failing
    posts = [office.post(id=str(number)) for number in range(50)]
    answer = await office.send(posts, path="/syndicate/batch")
    assert answer.status_code == 200
    assert [result["status"] for result in answer.json()["results"]] == [202] * 2 + [503] * 48
    assert calls == 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, "fsync"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "everysec"),
        ({"appendonly": "yes", "appendfsync": "no"}, "memory"),
        ({"appendonly": "no", "appendfsync": "always"}, "memory"),
        ({"aof_enabled": "1"}, "everysec"),
        ({"aof_enabled": "0"}, "memory"),
        ({}, "memory"),
    ],
)
async def test_what_a_202_means(clock, config, said):
    async def told():
        return config

    async with running_office(clock, config=told) as office:
        assert (await office.send()).json()["durability"] == said


async def test_durability_is_asked_for_now_and_then(office):
    assert (await office.send()).json()["durability"] == "everysec"
    office.desk.settings = {"appendonly": "yes", "appendfsync": "always"}
    assert (await office.send(office.post(id="2"))).json()["durability"] == "everysec"
    office.clock.advance(60)
    assert (await office.send(office.post(id="3"))).json()["durability"] == "fsync"


async def test_the_weakest_is_said_while_the_store_has_not_told(clock):
    answers = [StoreUnavailable("away"), {"appendonly": "yes", "appendfsync": "always"}]

    async def told():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with running_office(clock, config=told) as office:
        assert (await office.send()).json()["durability"] == "memory"
        assert (await office.send(office.post(id="2"))).json()["durability"] == "fsync"

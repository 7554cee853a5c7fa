"""From /syndicate to the reference PDS, through `serve` and workers as an operator runs them."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from pathlib import Path

import httpx
import pytest
import redis

from harness.crossing import AFTER, SCRIPTS, redis_gate
from harness.redis_servers import redis_server
from harness.waiting import until
from harness.workers import nursery_in
from integration.deployment import AccountOfTest, Deployment, document
from proxy.syndication.rkey import POST_COLLECTION

FAMILY = "👨‍👩‍👧‍👦"
_names = itertools.count()


@pytest.fixture(scope="module")
def nursery():
    # Not tmp_path: names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="fp-") as directory, nursery_in(Path(directory)) as running:
        yield running


@pytest.fixture
def people(pdses):
    """Two people with an account on the first PDS, named as in feedproxy.toml."""
    names = [f"writer{next(_names)}" for _ in range(2)]
    return [{"name": name, **pdses.do("createAccount", name=name)} for name in names]


@pytest.fixture
def store():
    """A Redis that may be emptied."""
    with redis_server() as server:
        yield server


@pytest.fixture
def deployment(pdses, people, store, nursery, tmp_path):
    """`serve` and nothing else; one account is named by its handle, the other by its DID."""
    urls = pdses.ready["urls"]
    accounts = [
        AccountOfTest(name=one["name"], identifier=identifier, password=one["password"])
        for one, identifier in zip(people, (people[0]["handle"], people[1]["did"]), strict=True)
    ]
    settings = {"REDIS_URL": store.url, "PLC_URL": urls["plc"], "UPSTREAM": urls["pds"]}
    with Deployment(tmp_path, nursery, accounts, **settings) as deployment:
        yield deployment


def records_of(pdses, person, *, pds="pds") -> dict[str, dict]:
    """All posts of a person by URI, as anybody may read them."""
    answer = httpx.get(
        f"{pdses.ready['urls'][pds]}/xrpc/com.atproto.repo.listRecords",
        params={"repo": person["did"], "collection": POST_COLLECTION, "limit": 100},
        trust_env=False,
    )
    return {record["uri"]: record for record in answer.json().get("records", ())}


def places(job) -> dict[str, tuple[str, str]]:
    """Where the job's records are, by account."""
    assert job["status"] == "completed", job
    return {one["account"]: (one["uri"], one["cid"]) for one in job["accounts"]}


def test_a_post_is_on_two_accounts_and_the_cms_did_not_wait_for_it(pdses, people, deployment):
    deployment.worker()
    deployment.ended(deployment.post("first"))  # from now on both DIDs are known
    title = f"Grüße {FAMILY} 日本語 👋🏽"
    answers, took_s = [], []
    for number in range(20):
        post = document(number, title=title, excerpt="字" * 20, tags=["python"])
        began_at = time.perf_counter()
        answers.append(deployment.send(post))
        took_s.append(time.perf_counter() - began_at)
    # The machine may be busy with other things: a part of the answers will do.
    assert sorted(took_s)[len(took_s) // 4] < 0.05, took_s
    for number, answer in enumerate(answers):
        predicted = {one["account"]: one["uri"] for one in answer.json()["accounts"]}
        done = places(deployment.ended(answer.json()))
        assert {name: uri for name, (uri, _) in done.items()} == predicted
        for person in people:
            uri, cid = done[person["name"]]
            record = records_of(pdses, person)[uri]
            assert record["cid"] == cid
            text = record["value"]["text"].encode()
            (facet,) = record["value"]["facets"]
            covered = text[facet["index"]["byteStart"] : facet["index"]["byteEnd"]].decode()
            assert covered == f"https://blog.example/{number}"
            assert text.decode().startswith(title)


# How long ago each was published, and what the CMS says of that when it sends it again.
EDITS = {
    "old, as it was": (3600, 3600),
    "old, of another day": (3600, 90_000),
    "old, now of today": (86_400, 0),
    "young, as it was": (120, 120),
    "young, a minute later": (300, 240),
    "young, now of long ago": (60, 7200),
    "young, now old": (500, 900),
    "as it comes": (0, 0),
    "as it comes, a little later": (30, 0),
    "just past ten minutes, now young": (620, 590),
}


def test_all_is_found_again_when_redis_was_lost_and_the_cms_sends_everything_again(
    pdses, people, deployment, store
):
    worker = deployment.worker()
    ages = list(EDITS.values()) * 2
    sent_at = time.time()
    jobs = [deployment.post(number, age_s=first) for number, (first, _) in enumerate(ages)]
    before = [places(deployment.ended(job)) for job in jobs]
    records = [records_of(pdses, person) for person in people]
    assert [len(found) for found in records] == [len(ages)] * 2

    with redis.Redis.from_url(store.url) as client:
        client.flushall()
    worker.kill()
    deployment.worker()
    passed_s = time.time() - sent_at
    again = []
    for number, (first, second) in enumerate(ages):
        age_s = second + passed_s if second == first else second
        again.append(deployment.post(number, age_s=age_s, title="Mended", revision=2))
    after = [places(deployment.ended(job)) for job in again]
    assert after == before
    assert [records_of(pdses, person) for person in people] == records


def test_what_another_tool_has_posted_is_adopted(pdses, people, deployment):
    deployment.worker()
    one, other = people
    url = "https://blog.example/elsewhere"
    feature = {"$type": "app.bsky.richtext.facet#link", "uri": url}
    facet = {"index": {"byteStart": 0, "byteEnd": 4}, "features": [feature]}
    theirs = pdses.do("write", account=one["name"], record={"text": "Look here", "facets": [facet]})
    job = deployment.ended(deployment.post("elsewhere", age_s=3600))
    assert places(job)[one["name"]] == (theirs["uri"], theirs["cid"])
    assert len(records_of(pdses, one)) == len(records_of(pdses, other)) == 1


async def test_what_its_author_deleted_does_not_come_back(pdses, people, deployment, store, nursery):
    """Though its worker dies before it knows that the job is done, and the CMS saves it again."""
    one, other = people
    finished, count = asyncio.Event(), itertools.count(1)

    async def crossing(name, when):
        if (name, when) == ("queue_finish", AFTER) and next(count) == len(people):
            finished.set()
            await asyncio.Event().wait()

    async def off_loop(call, *args, **kwargs):
        return await asyncio.to_thread(call, *args, **kwargs)

    with redis.Redis.from_url(store.url) as client:
        for script in SCRIPTS:  # else one more exchange tells that it is not known
            client.script_load(script.text)
    async with redis_gate(nursery.directory / "s", store.socket, crossing) as url:
        first = deployment.worker(REDIS_URL=url)
        job = await off_loop(deployment.post, 1, revision=1)
        await until(finished.is_set)
        done = places(await off_loop(deployment.ended, job))
        for person in people:
            pdses.do("remove", account=person["name"], uri=done[person["name"]][0])
        first.kill()
    deployment.worker()
    for revision in (1, 2, 3):
        saved = await off_loop(deployment.post, 1, title="Mended", revision=revision)
        assert saved["status"] == "completed"
    # The new worker is at work, for both accounts.
    later = await off_loop(deployment.ended, await off_loop(deployment.post, 2))
    for person in (one, other):
        assert set(records_of(pdses, person)) == {places(later)[person["name"]][0]}


def test_accounts_that_move_and_change_their_handles_go_on_by_themselves(pdses, people, deployment):
    deployment.worker()
    one, other = people
    first = places(deployment.ended(deployment.post(1)))
    pdses.do("changeHandle", account=one["name"], handle=f"{one['name']}-renamed.test")
    pdses.do("move", account=other["name"])
    second = places(deployment.ended(deployment.post(2)))
    assert set(records_of(pdses, one)) == {first[one["name"]][0], second[one["name"]][0]}
    moved = records_of(pdses, other, pds="other")
    assert set(moved) == {first[other["name"]][0], second[other["name"]][0]}
    # So do hosts that never met them before, and after both.
    pdses.do("move", account=one["name"])
    deployment.worker()
    third = places(deployment.ended(deployment.post(3)))
    assert third[one["name"]][0] in records_of(pdses, one, pds="other")
    assert third[other["name"]][0] in records_of(pdses, other, pds="other")

"""The intake before the real queue on a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
from pydantic import SecretStr

from harness.intake import DID, NEWS, SECRETS, WIDE, Listener, rfc3339, running_office
from harness.queue import QueueOfTest, find_nothing
from harness.waiting import until
from proxy.clock import SystemClock
from proxy.errors import StoreUnavailable
from proxy.store.persistence import persistence_of
from proxy.store.queue_store import QueueStore
from proxy.store.servers import servers_of
from proxy.syndication.desk import Enqueued
from proxy.syndication.post import restore_post
from proxy.syndication.queue import JobQueue, QueuePolicy

POLICY = QueuePolicy(
    lease_s=10,
    retry_delays_s=(60, 120, 300),
    breaker_threshold=3,
    breaker_cooldown_s=900,
    max_post_age_s=7 * 86400,
    done_retention_s=7 * 86400,
    dead_retention_s=30 * 86400,
)


@contextlib.asynccontextmanager
async def office_on(url, namespace):
    clock = SystemClock()
    servers = servers_of(SecretStr(url), clock, timeout_s=2)
    store = QueueStore(servers, clock)
    queue = JobQueue(store, clock, POLICY, namespace=namespace)
    try:
        async with running_office(clock, queue, config=persistence_of(servers, namespace)) as office:
            yield office
    finally:
        await queue.aclose()
        await store.aclose()


@pytest.fixture
async def office(store):
    async with office_on(store.url, store.namespace) as office:
        yield office


async def taken(office, count=1):
    """Deliveries as a worker gets them."""
    await office.desk.introduce("w1", {"main": "f", "side": "f"})
    leased = []
    while len(leased) < count:
        await find_nothing(office.desk, "w1")
        leased += await office.desk.wait_and_take("w1", count)
    return leased


def fields_of(store, prefix):
    """What the queue holds under keys that begin so."""
    start = f"{store.namespace}:{{q}}:{prefix}".encode()
    return [store._client.hgetall(key) for key in store.every_key() if key.startswith(start)]


async def test_a_post_comes_out_at_the_worker_as_it_went_in(office):
    document = office.post(accounts=["main"], title="ä😀\u2028", revision=3, tags=["x"], group="g")
    answer = await office.send(document)
    shown = answer.json()
    assert answer.status_code == 202
    # A store of tests keeps nothing on disk.
    assert (shown["durability"], shown["status"], shown["revision"]) == ("memory", "pending", 3)
    (leased,) = await taken(office)
    post = restore_post(leased.job.payload)
    assert (post.id, post.title, post.revision, post.tags) == ("1", "ä😀\u2028", 3, ("x",))
    assert (leased.delivery.did, leased.job.first_published_at_ms) == (DID, post.published_at_ms)
    await office.desk.finish(leased, shown["accounts"][0]["uri"], "bafy")
    done = (await office.ask(shown["links"]["self"])).json()
    assert (done["status"], done["accounts"][0]["cid"]) == ("completed", "bafy")
    assert done["accounts"][0]["uri"] == shown["accounts"][0]["uri"]


async def test_a_thousand_at_once_with_one_key_are_one_job(office, store):
    answers = await asyncio.gather(*(office.send(idempotency_key="k") for _ in range(1000)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(202, answers[0].text)}
    assert len(fields_of(store, "job:")) == 1
    other = await office.send(office.post(title="Another"), idempotency_key="k")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_replay_is_the_stored_answer_whatever_happened_since(office):
    first = await office.send(office.post(accounts=["main"]), idempotency_key="k")
    (leased,) = await taken(office)
    await office.desk.finish(leased, "at://x", "bafy")
    again = await office.send(office.post(accounts=["main"]), idempotency_key="k")
    assert again.json() == first.json()
    news = await office.send(office.post(url="https://news.example/"), token=NEWS, idempotency_key="k")
    assert news.json()["id"] != first.json()["id"]


async def test_the_first_publication_decides_the_uri_for_good(office):
    now = office.clock.wall()
    first = (await office.send(office.post(published_at=rfc3339(now - 3600)))).json()
    edited = (await office.send(office.post(published_at=rfc3339(now - 60), title="Edited"))).json()
    assert edited["id"] == first["id"]
    uris = [account["uri"] for account in first["accounts"]]
    assert all(uri.startswith("at://") for uri in uris)
    assert [account["uri"] for account in edited["accounts"]] == uris


async def test_revisions_in_any_order_end_with_the_highest(office, store):
    revisions = list(range(1, 51))
    random.Random(7).shuffle(revisions)
    for revision in revisions:
        answer = await office.send(office.post(revision=revision, title=f"Title {revision}"))
        assert answer.status_code == 202
    (job,) = fields_of(store, "job:")
    assert restore_post(job[b"payload"].decode()).title == "Title 50"


async def test_publish_draft_publish_without_revisions_ends_published(office):
    first = (await office.send()).json()
    assert (await office.send(office.post(status="draft"))).json()["status"] == "canceled"
    again = (await office.send()).json()
    assert again["status"] == "pending"
    assert [account["uri"] for account in again["accounts"]] == [
        account["uri"] for account in first["accounts"]
    ]


async def test_skipped_reused_and_full(office, store):
    assert (await office.send(office.post(status="draft"))).json()["reason"] == "not_published"
    assert fields_of(store, "") == []
    await office.send()
    reused = office.post(url="https://blog.example/2", published_at=rfc3339(office.clock.wall()))
    assert (await office.send(reused)).json()["code"] == "id_reused"
    for number in range(3):
        await office.send(office.post(id=str(number), url="https://news.example/"), token=NEWS)
    full = await office.send(office.post(id="9", url="https://news.example/"), token=NEWS)
    assert (full.status_code, full.json()["code"]) == (429, "too_many_waiting")


async def test_a_post_of_the_future_says_until_when_it_waits(office):
    at = rfc3339(office.clock.wall() + 3600)
    account = (await office.send(office.post(published_at=at))).json()["accounts"][0]
    assert (account["status"], account["waiting_for"], account["next_attempt_at"]) == (
        "pending",
        "schedule",
        at,
    )


async def test_a_paused_account_is_shown_as_such(office):
    await office.desk.pause("main", paused=True)
    main, side = (await office.send()).json()["accounts"]
    assert (main["status"], main["waiting_for"], side["waiting_for"]) == ("pending", "paused", "enrich")


async def test_lists_go_by_site_status_group_and_page(office):
    for number in range(7):
        await office.send(office.post(id=str(number), group="odd" if number % 2 else "even"))
    canceled = (await office.send(office.post(id="x"))).json()
    await office.ask(canceled["links"]["self"], method="DELETE")

    async def listed(query):
        posts, cursor = [], ""
        while cursor is not None:
            page = (await office.ask(f"/syndicate?{query}&limit=2&cursor={cursor}")).json()
            posts += [job["post"] for job in page["jobs"]]
            cursor = page["cursor"]
        return posts

    assert await listed("") == ["x", "6", "5", "4", "3", "2", "1", "0"]
    assert await listed("group=odd&status=pending") == ["5", "3", "1"]
    assert await listed("status=canceled") == ["x"]
    assert (await office.ask("/syndicate?cursor=never-given")).json() == {
        "jobs": [],
        "errors": None,
        "cursor": None,
    }
    assert (await office.ask("/syndicate", token=NEWS)).json()["jobs"] == []
    assert (await office.ask(canceled["links"]["self"], token=NEWS)).status_code == 404


async def test_what_failed_is_retried_and_what_was_not_sent_is_canceled(office):
    job = (await office.send(office.post(accounts=["main"]))).json()
    assert (await office.ask(job["links"]["retry"], method="POST")).json()["code"] == "nothing_to_retry"
    (leased,) = await taken(office)
    await office.desk.fail(leased, "the PDS said no")
    failed = (await office.ask(job["links"]["self"])).json()
    assert (failed["status"], failed["accounts"][0]["error"]) == ("failed", "the PDS said no")
    page = (await office.ask("/syndicate?status=failed")).json()
    assert page["jobs"][0]["id"] == job["id"]
    (error,) = page["errors"]
    assert error.pop("last_at").endswith("Z")
    assert error == {"account": "main", "reason": "the PDS said no", "count": 1}
    assert (await office.ask("/syndicate?group=other")).json()["errors"] == []
    assert (await office.ask("/syndicate", token=NEWS)).json()["errors"] == []
    retried = await office.ask(job["links"]["retry"], method="POST")
    assert (retried.status_code, retried.json()["status"]) == (202, "pending")
    gone = await office.ask(job["links"]["self"], method="DELETE")
    assert (gone.status_code, gone.json()["status"]) == (200, "canceled")


async def ended(office, how):
    """A post whose job ended so, and is long forgotten; with two accounts, of which the first did."""
    document = office.post(accounts=["main", "side"] if how == "partial" else ["main"])
    job = (await office.send(document)).json()
    if how == "canceled":
        await office.ask(job["links"]["self"], method="DELETE")
    else:
        for leased in await taken(office, len(document["accounts"])):
            if how == "completed" or leased.delivery.account == "side":
                await office.desk.finish(leased, "at://x", "bafy")
            else:
                await office.desk.fail(leased, "the PDS said no")
    assert (await office.ask(job["links"]["self"])).json()["status"] == how
    return document


@pytest.mark.parametrize("how", ["completed", "partial", "failed", "canceled"])
async def test_a_post_whose_job_is_forgotten_is_shown_as_it_ended(office, store, how):
    document = await ended(office, how)
    stored = QueueOfTest(store.url, store.namespace)
    stored.let_time_pass(40 * 86400)
    await office.desk.sweep()
    await office.desk.sweep()
    assert stored.keys("job:*") == []
    stored.redis.close()
    # An edit, nothing new, and the same once more; what may still be published is not sent again here.
    draft = {**document, "status": "draft"}
    shown = [await office.send(draft, idempotency_key="k") for _ in range(2)] + [await office.send(draft)]
    if how in ("completed", "partial"):
        shown.append(await office.send({**document, "title": "Mended"}))
    for answer in shown:
        body = answer.json()
        assert (answer.status_code, body["id"], body["status"]) == (202, None, how)
        assert {account["status"] for account in body["accounts"]} == {how}


async def test_a_deleted_record_is_not_shown_as_one_that_is_there(office, store):
    uri = "at://did:plc:side/app.bsky.feed.post/3abc"
    document = office.post(accounts=["side"], url="https://news.example/1")
    job = (await office.send(document, token=NEWS)).json()["links"]["self"]

    async def carry_out(**outcome):
        (leased,) = await taken(office)
        await (
            office.desk.fail(leased, **outcome)
            if "reason" in outcome
            else office.desk.finish(leased, uri, "c")
        )

    async def told():
        (listed,) = (await office.ask("/syndicate", token=NEWS)).json()["jobs"]
        shown = (await office.ask(job, token=NEWS)).json()
        assert listed["accounts"] == shown["accounts"]
        (account,) = shown["accounts"]
        assert account["uri"] == uri
        return shown["status"], account["action"], account["cid"]

    await carry_out()
    assert await told() == ("completed", "post", "c")
    trash = {**document, "status": "trash"}
    assert (await office.send(trash, token=NEWS)).status_code == 202
    assert await told() == ("pending", "delete", "c")
    await carry_out(reason="it was changed")
    assert await told() == ("failed", "delete", "c")
    await office.ask(f"{job}/retry", method="POST", token=NEWS)
    await carry_out()
    assert await told() == ("completed", "delete", None)
    stored = QueueOfTest(store.url, store.namespace)
    stored.let_time_pass(40 * 86400)
    await office.desk.sweep()
    await office.desk.sweep()
    stored.redis.close()
    remembered = (await office.send(trash, token=NEWS, idempotency_key="k")).json()
    assert remembered["id"] is None
    assert [(each["action"], each["cid"]) for each in remembered["accounts"]] == [("delete", None)]


async def test_who_waits_for_a_job_is_told(office):
    job = (await office.send(office.post(accounts=["main"]))).json()
    poll = asyncio.create_task(office.ask(f"/syndicate/{job['id']}?wait=60"))
    async with Listener(office, f"/syndicate/{job['id']}/events") as listener:
        await until(listener.events)
        (leased,) = await taken(office)
        await office.desk.finish(leased, "at://x", "bafy")
        await until(lambda: listener.ended)
        assert listener.events()[-1]["status"] == "completed"
    assert (await poll).json()["status"] == "completed"


async def test_a_batch_is_stored_in_its_order(office):
    posts = [office.post(id="a", title="1"), office.post(id="b"), office.post(id="a", title="2"), {}]
    results = (await office.send(posts, path="/syndicate/batch")).json()["results"]
    assert [result["status"] for result in results] == [202, 202, 202, 422]
    assert results[0]["body"]["id"] == results[2]["body"]["id"]


async def test_bad_input_stores_nothing(office, store):
    for document in (
        b"{",
        {},
        [],
        office.post(id="x" * 300),
        office.post(url="https://evil.example/"),
        office.post(accounts=["nobody"]),
        office.post(published_at="2026-11-22"),
        office.post(unknown="x" * 70_000),
    ):
        assert 400 <= (await office.send(document)).status_code < 500
    assert (await office.send(token="x" * 30)).status_code == 401
    assert store.keys() == []


async def test_nasty_names_are_only_names(office, store):
    nasty = "a:b}{q}\u2028'\"]] return redis.call('FLUSHALL') --"
    job = (await office.send(office.post(id=nasty, group=nasty))).json()
    assert (job["post"], job["group"]) == (nasty, nasty)
    assert (await office.ask(job["links"]["self"])).json() == job
    other = (await office.send(office.post(id="a:b}{q}"))).json()
    assert other["id"] != job["id"]
    key = {"idempotency_key": nasty.encode("ascii", "replace").decode()}
    wide = [await office.send(office.post(id="k"), token=WIDE, **key) for _ in range(2)]
    assert wide[0].json() == wide[1].json()


async def test_no_secret_is_in_the_store(office, store):
    await office.send()
    await office.send(token="wrong-token-wrong-token")
    await office.send(idempotency_key="k")
    stored = b""
    for key in store.every_key():
        stored += key + (store._client.dump(key) or b"")
    assert b"A title" in stored
    for secret in (*SECRETS.values(), "wrong-token-wrong-token"):
        assert secret.encode() not in stored


async def test_without_a_store_it_is_503_and_nothing_is_promised():
    async with office_on("unix:///nowhere/s", "test-none") as office:
        answer = await office.send()
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0


async def test_a_job_of_a_newer_version_is_there_all_the_same(office, store):
    job = (await office.send()).json()
    store._client.hset(f"{store.namespace}:{{q}}:job:{job['id']}", "format", "99")
    answer = await office.send(office.post(title="Another"))
    assert (answer.status_code, answer.json()["id"]) == (202, job["id"])


async def test_an_answer_that_was_lost_is_the_same_again(office, store):
    enqueue, lost = office.desk.enqueue, []

    async def losing(submission) -> Enqueued:
        lost.append(await enqueue(submission))
        if len(lost) == 1:
            raise StoreUnavailable("the answer was lost")
        return lost[-1]

    office.desk.enqueue = losing
    assert (await office.send()).status_code == 503
    again = await office.send()
    assert again.json()["id"] == lost[0].job
    assert lost[1].replayed
    assert len(fields_of(store, "job:")) == 1
    assert json.loads(again.text)["status"] == "pending"


async def settings_at(url):
    servers = servers_of(SecretStr(url), SystemClock(), timeout_s=2)
    try:
        return await persistence_of(servers, "any")()
    finally:
        await servers.aclose()


async def test_a_store_that_hides_its_settings_tells_enough(store):
    store._client.execute_command("ACL", "SETUSER", "shy", "on", ">shy-password", "~*", "+@all", "-config")
    path = store.url.removeprefix("unix://")
    try:
        told = await settings_at(store.url)
        assert (told["appendonly"], told["appendfsync"]) == ("no", "everysec")
        shy = await settings_at(f"unix://shy:shy-password@{path}")
        assert shy["aof_enabled"] == "0"
        assert "appendonly" not in shy
    finally:
        store._client.execute_command("ACL", "DELUSER", "shy")


async def test_a_store_that_is_away_is_said_to_be():
    with pytest.raises(StoreUnavailable):
        await settings_at("unix:///nowhere/s")

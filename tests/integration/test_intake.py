"""What a CMS may send and what it is told: every error with its code, and nothing stored for bad input."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from harness.intake import BLOG, DID, NEWS, SECRETS, TENANTS, assert_problem, rfc3339, running_office
from proxy.syndication.job import DeliveryState
from proxy.syndication.rkey import record_key, record_uri


@pytest.fixture
async def office(clock):
    async with running_office(clock) as office:
        yield office


async def test_a_post_is_taken_in_with_its_predicted_uris(office):
    document = office.post(accounts=None, revision=3, group="autumn", colour="red")
    answer = await office.send(document)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/syndicate/{job['id']}"
    rkeys = {
        did: record_key(
            did=did,
            site="blog",
            post_id="1",
            published_at_ms=int(office.clock.wall() - 60) * 1000,
            generation=0,
        )
        for did in (DID, "did:plc:side")
    }
    account = {
        "status": "pending",
        "action": "post",
        "cid": None,
        "attempts": 0,
        "next_attempt_at": None,
        "waiting_for": None,
        "error": None,
        "degraded": [],
    }
    assert job == {
        "id": job["id"],
        "post": "1",
        "revision": 3,
        "group": "autumn",
        "status": "pending",
        "created_at": rfc3339(office.clock.wall()),
        "durability": "everysec",
        "warnings": ["$.colour is not known and was ignored"],
        "accounts": [
            {"account": "main", "did": DID, "uri": record_uri(DID, rkeys[DID]), **account},
            {
                "account": "side",
                "did": "did:plc:side",
                "uri": record_uri("did:plc:side", rkeys["did:plc:side"]),
                **account,
            },
        ],
        "callback": None,
        "links": {"self": f"/syndicate/{job['id']}", "retry": f"/syndicate/{job['id']}/retry"},
    }
    assert (await office.ask(job["links"]["self"])).json() == {**job, "warnings": []}


async def test_did_and_uri_are_null_until_the_did_is_known(office):
    office.dids.clear()
    first = (await office.send(office.post(accounts=["main"]))).json()
    assert (first["accounts"][0]["did"], first["accounts"][0]["uri"]) == (None, None)
    office.dids["main"] = DID
    later = (await office.ask(first["links"]["self"])).json()["accounts"][0]
    assert later["did"] == DID
    assert later["uri"].startswith(f"at://{DID}/app.bsky.feed.post/")


async def test_printed_addresses_begin_with_the_public_url(clock):
    async with running_office(clock, public_url="https://proxy.example") as office:
        answer = await office.send()
        assert answer.headers["location"].startswith("https://proxy.example/syndicate/job_")
        assert answer.json()["links"]["self"] == answer.headers["location"]
        document = (await office.ask("/openapi.json")).json()
        assert document["servers"] == [{"url": "https://proxy.example"}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "draft"}, "not_published"),
        ({"syndicate": False}, "switched_off"),
        ({"previous_status": "publish"}, "already_published"),
        ({"published_at": "2020-01-01T00:00:00Z"}, "too_old"),
    ],
)
async def test_an_unknown_post_that_is_not_to_be_syndicated_is_skipped(office, changes, reason):
    answer = await office.send(office.post(**changes))
    assert (answer.status_code, answer.json()["status"], answer.json()["reason"]) == (200, "skipped", reason)
    assert "location" not in answer.headers
    assert office.desk.views == {}


async def test_whoever_has_no_token_of_a_site_is_turned_away(office):
    for headers in ({}, {"authorization": "Basic YTpi"}, {"authorization": f"Bearer {BLOG}x"}):
        answer = await office.client.post("/syndicate", json=office.post(), headers=headers)
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert office.desk.submissions == []


async def test_a_body_is_not_read_before_the_token_is_known(office):
    async def never():
        raise AssertionError("the body was read")
        yield b""

    answer = await office.client.post("/syndicate", content=never(), headers={"authorization": "Bearer x"})
    assert_problem(answer, 401, "unauthorized")


async def test_an_old_token_works_while_tokens_are_rotated(office):
    assert (await office.send(token=SECRETS["BLOG_TOKEN_OLD"])).status_code == 202
    without = {name: value for name, value in SECRETS.items() if name != "BLOG_TOKEN_OLD"}
    await office.book.reload(TENANTS, without)
    assert_problem(await office.send(token=SECRETS["BLOG_TOKEN_OLD"]), 401, "unauthorized")
    assert (await office.send()).status_code == 202


async def test_guesses_behind_a_proxy_are_counted_by_who_made_them(office):
    for _ in range(10):
        assert_problem(
            await office.send(token="x" * 30, x_forwarded_for="1.1.1.1, 203.0.113.9"), 401, "unauthorized"
        )
    # Other claims are the same client; another client is not.
    again = await office.send(token="x" * 30, x_forwarded_for="2.2.2.2, 203.0.113.9")
    assert_problem(again, 429, "too_many_failures")
    other = await office.send(token="x" * 30, x_forwarded_for="203.0.113.10")
    assert_problem(other, 401, "unauthorized")


async def test_guessing_is_slowed_down_and_hurts_nobody_who_was_welcome(office):
    assert (await office.send()).status_code == 202
    for _ in range(10):
        assert_problem(await office.send(token="x" * 30), 401, "unauthorized")
    limited = await office.send(token="x" * 30)
    assert_problem(limited, 429, "too_many_failures")
    assert 1 <= int(limited.headers["retry-after"]) <= 6
    # A guess that fits is not told so either.
    assert_problem(await office.send(token=NEWS), 429, "too_many_failures")
    assert (await office.send()).status_code == 202
    office.clock.advance(6)
    assert (await office.send(office.post(url="https://news.example/"), token=NEWS)).status_code == 202


async def test_an_account_of_another_site_is_forbidden(office):
    document = office.post(accounts=["main"])
    assert_problem(await office.send(document, token=NEWS), 403, "account_not_allowed")
    assert_problem(await office.send(office.post(accounts=["nobody"])), 403, "account_not_allowed")
    assert office.desk.submissions == []


async def test_an_account_named_twice_gets_one_delivery(office):
    job = (await office.send(office.post(accounts=["side", "side"]))).json()
    assert [account["account"] for account in job["accounts"]] == ["side"]


@pytest.mark.parametrize(
    ("field", "url"),
    [
        ("url", "https://evil.example/"),
        ("url", "https://blog.example.evil.example/"),
        ("url", "https://sub.blog.example/"),
        ("url", "https://blog.example:8443/"),
        ("url", "https://alt.example/"),
        ("callback_url", "https://127.0.0.1/hook"),
    ],
)
async def test_urls_point_to_the_hosts_of_the_site(office, field, url):
    problem = assert_problem(await office.send(office.post(**{field: url})), 422, "host_not_allowed")
    assert [fault["path"] for fault in problem["errors"]] == [f"$.{field}"]
    assert office.desk.submissions == []


@pytest.mark.parametrize(
    "url",
    [
        "https://blog.example/a",
        "http://BLOG.example:80/a",
        "https://blog.example.:443/",
        "https://alt.example:8443/x",
    ],
)
async def test_hosts_of_the_site_in_all_spellings(office, url):
    assert (await office.send(office.post(url=url))).status_code == 202


async def test_a_site_without_hosts_may_point_anywhere(office):
    document = office.post(url="http://192.168.0.1:8080/x")
    assert (await office.send(document, token=NEWS)).status_code == 202


async def test_each_fault_of_a_post_is_told_with_its_path(office):
    answer = await office.send(office.post(id="", tags=[1], published_at="2026-11-22T09:00:00"))
    problem = assert_problem(answer, 422, "invalid_post")
    assert {fault["path"] for fault in problem["errors"]} == {"$.id", "$.tags[0]", "$.published_at"}
    assert office.desk.submissions == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"id": "1", "id": "2"}', b'{"a": NaN}', b'{"a": 1e999}', b"\xff", b"[" * 30_000]
)
async def test_a_body_that_is_no_plain_json_is_refused(office, body):
    assert_problem(await office.send(body), 422, "invalid_json")
    assert office.desk.submissions == []


async def test_only_json_is_read(office):
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "application/json; charset=latin1",
    ):
        answer = await office.send(content_type=content_type)
        assert_problem(answer, 415, "unsupported_media_type")
    assert_problem(await office.send(content_encoding="gzip"), 415, "unsupported_media_type")
    assert (await office.send(content_type="Application/JSON; charset=UTF-8")).status_code == 202


async def test_a_body_is_read_up_to_the_limit_and_no_further(office):
    limit = 64 * 1024
    document = office.post(unknown="")
    document["unknown"] = "x" * (limit - len(json.dumps(document)))
    assert len(json.dumps(document)) == limit
    assert (await office.send(document)).status_code == 202
    document["unknown"] += "x"
    assert_problem(await office.send(document), 413, "too_large")
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 4096
            yield b" " * 4096

    headers = {"authorization": f"Bearer {BLOG}", "content-type": "application/json"}
    answer = await office.client.post("/syndicate", content=endless(), headers=headers)
    assert_problem(answer, 413, "too_large")
    assert sent <= limit + 8192


async def test_other_methods_are_told_which_are_possible(office):
    answer = await office.ask("/syndicate", method="PUT")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    assert_problem(await office.ask("/syndicate/batch", method="GET"), 405, "method_not_allowed")


async def test_a_key_replays_its_answer_and_belongs_to_one_payload(office):
    first = await office.send(idempotency_key="k 1")
    await office.desk.change(first.json()["id"], DeliveryState.DONE)
    again = await office.send(idempotency_key="k 1")
    assert (again.status_code, again.json()) == (202, first.json())
    other = await office.send(office.post(title="Another"), idempotency_key="k 1")
    assert_problem(other, 422, "idempotency_key_reused")
    # Another site's key is another key.
    news = await office.send(office.post(url="https://news.example/"), token=NEWS, idempotency_key="k 1")
    assert news.status_code == 202
    assert news.json()["id"] != first.json()["id"]


async def test_a_thousand_at_once_with_one_key_are_one_job(office):
    answers = await asyncio.gather(*(office.send(idempotency_key="k") for _ in range(1000)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert len(office.desk.views) == 1


async def test_without_a_key_the_same_payload_is_the_key(office):
    first = (await office.send(office.post(revision=1))).json()
    assert (await office.send(office.post(revision=1, unknown=1))).json()["id"] == first["id"]
    keys = [submission.key for submission in office.desk.submissions]
    assert keys[0] == keys[1]
    await office.send(office.post(revision=2))
    await office.send(office.post(revision=2, title="Another"))
    await office.send(office.post(revision=2), idempotency_key=keys[0])
    assert len({submission.key for submission in office.desk.submissions}) == 4
    assert [submission.explicit_key for submission in office.desk.submissions] == [False] * 4 + [True]


@pytest.mark.parametrize("key", ["", "x" * 256, "ä".encode("latin-1"), "a\tb", " "])
async def test_a_key_that_is_none(office, key):
    headers = {"authorization": f"Bearer {BLOG}", "idempotency-key": key}
    answer = await office.client.post("/syndicate", json=office.post(), headers=headers)
    assert_problem(answer, 422, "invalid_idempotency_key")
    assert office.desk.submissions == []


async def test_two_keys_are_none(office):
    headers = [("authorization", f"Bearer {BLOG}"), ("idempotency-key", "a"), ("idempotency-key", "b")]
    answer = await office.client.post("/syndicate", json=office.post(), headers=headers)
    assert_problem(answer, 422, "invalid_idempotency_key")


async def test_a_new_post_under_an_old_id_is_told_the_remedy(office):
    await office.send()
    reused = office.post(url="https://blog.example/2", published_at=rfc3339(office.clock.wall()))
    problem = assert_problem(await office.send(reused), 409, "id_reused")
    assert "feedproxy.toml" in problem["detail"]


async def test_an_older_revision_changes_nothing_and_is_told_so(office):
    await office.send(office.post(revision=5))
    answer = await office.send(office.post(revision=4, title="Older"))
    assert (answer.status_code, answer.json()["revision"]) == (202, 5)
    assert "older" in answer.json()["warnings"][0]


async def test_no_more_than_max_waiting(office):
    for number in range(3):
        document = office.post(id=str(number), url="https://news.example/")
        assert (await office.send(document, token=NEWS)).status_code == 202
    answer = await office.send(office.post(id="4", url="https://news.example/"), token=NEWS)
    assert_problem(answer, 429, "too_many_waiting")
    assert answer.headers["retry-after"] == "60"
    assert (await office.send()).status_code == 202


async def test_a_batch_has_a_result_for_each_post(office):
    posts = [
        office.post(id="a"),
        office.post(id="b", status="draft"),
        {"id": "c"},
        office.post(id="d", url="https://evil.example/"),
        office.post(id="e", accounts=["nobody"]),
        office.post(id="f", text="x", unknown="x" * 65_536),
        office.post(id="a", revision=1, title="Later"),
        7,
    ]
    answer = await office.send(posts, path="/syndicate/batch", idempotency_key="b")
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [result["status"] for result in results] == [202, 200, 422, 422, 403, 413, 202, 422]
    codes = [result["body"].get("code") for result in results]
    assert codes == [
        *(None, None, "invalid_post", "host_not_allowed", "account_not_allowed", "too_large", None),
        "invalid_post",
    ]
    assert results[0]["body"]["id"] == results[6]["body"]["id"]
    assert len(office.desk.views) == 1
    again = await office.send(posts, path="/syndicate/batch", idempotency_key="b")
    assert again.json() == answer.json()
    posts[0]["title"] = "Another"
    reused = (await office.send(posts, path="/syndicate/batch", idempotency_key="b")).json()["results"]
    assert (reused[0]["status"], reused[0]["body"]["code"]) == (422, "idempotency_key_reused")


async def test_a_batch_is_one_to_a_hundred_posts(office):
    for document in ([], {}, None, [office.post()] * 101, {"posts": []}):
        body = json.dumps(document).encode()
        assert_problem(await office.send(body, path="/syndicate/batch"), 422, "invalid_batch")
    posts = [office.post(id=str(number)) for number in range(100)]
    answer = await office.send(posts, path="/syndicate/batch")
    assert [result["status"] for result in answer.json()["results"]] == [202] * 100
    huge = [office.post(unknown="x" * 60_000)] * 20
    assert_problem(await office.send(huge, path="/syndicate/batch"), 413, "too_large")


async def test_text_of_tenants_comes_back_as_json_alone(office):
    nasty = "<script>alert(1)</script>\u2028"
    answer = await office.send(office.post(id=nasty.strip(), group="<b>", **{"<i>": 1}))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["group"] == "<b>"
    problem = await office.send(b'{"<i>": 1, "<i>": 2}')
    assert problem.headers["content-type"] == "application/problem+json"


async def test_secrets_appear_in_no_answer_log_repr_or_stored_value(office, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    answers = [await office.send(), await office.send(token="wrong-token-wrong-token")]
    answers.append(await office.send(office.post(accounts=["nobody"])))
    told = "".join(f"{answer.text}{answer.headers}" for answer in answers)
    objects = f"{office.book!r}{office.book.current!r}{office.book.current.credential('main')!r}"
    stored = repr(office.desk.submissions)
    out, err = capfd.readouterr()
    for secret in (*SECRETS.values(), "wrong-token-wrong-token"):
        for where in (told, objects, stored, caplog.text, out, err):
            assert secret not in where

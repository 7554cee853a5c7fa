"""What operators may do over HTTP, and who is let in."""

from __future__ import annotations

import pytest

from harness.proxy import running_proxy
from harness.queue import QueueOfTest, submission
from harness.valkey import StoreOfTest

TOKEN = "an-admin-token-of-32-characters-x"
BEARER = {"authorization": f"Bearer {TOKEN}"}
CONFIG = """
[[accounts]]
name = "main"
identifier = "did:plc:main"
password_env = "MAIN_PASSWORD"

[[sites]]
name = "blog"
token_env = "BLOG_TOKEN"
accounts = ["main"]
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOG_TOKEN", "the-token-of-the-site-blog")
    monkeypatch.setenv("MAIN_PASSWORD", "the-password-of-main")
    (tmp_path / "feedproxy.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path / "feedproxy.toml"


@pytest.fixture
async def proxy(upstream, store, config):
    # TOKENS of sites lie in the environment, which this process shares with the proxy.
    async with running_proxy(upstream.url, store, ADMIN_TOKEN=TOKEN, CONFIG=config) as proxy:
        await proxy.web.syndication.queue.introduce("w1", {"main": "fp"})
        yield proxy
    QueueOfTest(store.url, store.namespace).close()


async def ask(proxy, method, path, document=None, **more):
    answer = await proxy.client.request(method, path, json=document, headers=BEARER, **more)
    assert answer.headers["cache-control"] == "no-store"
    return answer.status_code, answer.json()


async def posted(proxy, post="1", **changes):
    return (await proxy.web.syndication.queue.enqueue(submission(post, **changes))).job


async def died(proxy, post="1", reason="no", **changes):
    queue = proxy.web.syndication.queue
    job = await posted(proxy, post, **changes)
    (leased,) = await queue.take("w1", 1)
    await queue.fail(leased, reason)
    return job


async def test_without_a_token_there_is_nothing(upstream, store, config):
    async with running_proxy(upstream.url, store) as proxy:
        for method, path in (("POST", "/admin/pause"), ("GET", "/admin/queue"), ("POST", "/purge")):
            assert (await proxy.client.request(method, path, headers=BEARER)).status_code == 404


async def test_wrong_tokens_are_refused_everywhere_and_counted_together(proxy):
    paths = [("POST", "/purge"), ("GET", "/admin/queue"), ("POST", "/admin/dead/drop")]
    seen = []
    for number in range(11):
        method, path = paths[number % 3]
        answer = await proxy.client.request(method, path, headers={"authorization": "Bearer guess"})
        seen.append(answer.status_code)
    assert seen == [401] * 10 + [429]
    refused = await proxy.client.get("/admin/queue", headers=BEARER)
    assert (refused.status_code, int(refused.headers["retry-after"]) <= 10) == (429, True)


async def test_pause_and_resume(proxy):
    job = await posted(proxy)
    assert await ask(proxy, "POST", "/admin/pause") == (200, {"paused": "everything"})
    status, queue = await ask(proxy, "GET", "/admin/queue")
    assert (status, queue["paused"], queue["paused_at"] is not None) == (200, True, True)
    (account,) = queue["accounts"]
    assert (account["account"], account["state"], account["waiting"]) == ("main", "open", 1)
    assert await ask(proxy, "POST", "/admin/pause", {"account": "main"}) == (200, {"paused": "main"})
    _, shown = await ask(proxy, "GET", f"/admin/jobs/{job}")
    (delivery,) = shown["accounts"]
    assert [cause["code"] for cause in delivery["waiting_for"]] == ["account_paused", "paused"]
    assert await ask(proxy, "POST", "/admin/resume") == (200, {"resumed": "everything"})
    assert await proxy.web.syndication.queue.take("w1", 1) == []
    assert await ask(proxy, "POST", "/admin/resume", {"account": "main"}) == (200, {"resumed": "main"})
    assert len(await proxy.web.syndication.queue.take("w1", 1)) == 1
    assert (await ask(proxy, "POST", "/admin/pause", {"account": "other"}))[0] == 404


async def test_jobs_are_listed_shown_canceled_and_tried_again(proxy):
    job = await died(proxy, "1", group="autumn")
    waiting = await posted(proxy, "2")
    _, page = await ask(proxy, "GET", "/admin/jobs?site=blog")
    assert [(line["id"], line["status"]) for line in page["jobs"]] == [(waiting, "pending"), (job, "failed")]
    _, page = await ask(proxy, "GET", "/admin/jobs?site=blog&status=failed&group=autumn&limit=1")
    assert [line["id"] for line in page["jobs"]] == [job]
    assert (await ask(proxy, "DELETE", f"/admin/jobs/{waiting}"))[1]["status"] == "canceled"
    assert (await ask(proxy, "POST", f"/admin/jobs/{job}/retry"))[1]["status"] == "pending"
    for method, path in (
        ("GET", "/admin/jobs/job_x"),
        ("DELETE", "/admin/jobs/job_x"),
        ("POST", "/admin/jobs/job_x/retry"),
    ):
        assert (await ask(proxy, method, path))[0] == 404
    for query in ("", "site=blog&status=bad", "site=blog&limit=0", "site=blog&sites=x"):
        assert (await ask(proxy, "GET", f"/admin/jobs?{query}"))[0] == 400


async def test_dead_letters_are_counted_tried_again_and_dropped(proxy):
    for number in range(3):
        await died(proxy, str(number), reason="bad word")
    await died(proxy, "long", reason="too long")
    _, summary = await ask(proxy, "GET", "/admin/dead/summary")
    assert [(line["reason"], line["count"]) for line in summary["errors"]] == [
        ("bad word", 3),
        ("too long", 1),
    ]
    _, page = await ask(proxy, "GET", "/admin/dead?reason=word&limit=2")
    _, rest = await ask(proxy, "GET", f"/admin/dead?reason=word&cursor={page['cursor']}")
    assert [line["post"] for line in (*page["dead"], *rest["dead"])] == ["2", "1", "0"]
    assert await ask(proxy, "POST", "/admin/dead/retry", {"reason": "too"}) == (200, {"retried": 1})
    assert await ask(proxy, "POST", "/admin/dead/drop", {"older_than_s": 3600}) == (200, {"dropped": 0})
    assert await ask(proxy, "POST", "/admin/dead/drop", {"all": True}) == (200, {"dropped": 3})


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"all": False},
        {"all": True, "site": "blog"},
        {"sites": "blog"},
        {"older_than_s": "3d"},
        {"site": 1},
    ],
)
async def test_nothing_happens_to_dead_letters_that_were_not_meant(proxy, document):
    await died(proxy)
    for what in ("retry", "drop"):
        assert (await ask(proxy, "POST", f"/admin/dead/{what}", document))[0] == 400
    _, page = await ask(proxy, "GET", "/admin/dead")
    assert len(page["dead"]) == 1


async def test_a_store_that_is_away_is_said_to_be(upstream, tmp_path, config):
    nowhere = StoreOfTest(f"unix://{tmp_path}/none.sock", "test")
    async with running_proxy(upstream.url, nowhere, ADMIN_TOKEN=TOKEN, CONFIG=config) as proxy:
        status, said = await ask(proxy, "POST", "/admin/pause")
    assert (status, said["error"]) == (503, "StoreUnavailable")

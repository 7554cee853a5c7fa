"""What the world sees of posts on their way: each site its own jobs, and nobody anything else."""

from __future__ import annotations

import httpx
import pytest

from harness.newsroom import PASSWORD, token_of
from harness.proxy import running_proxy
from harness.queue import QueueOfTest, submission
from proxy.syndication.openapi import OPERATIONS

ADMIN = "admin-token-of-this-test-0123456789"
# What stands in the job of the blog, and its name: words that are nowhere else.
GROUP, POST = "unannounced-group", "unannounced-post"
TOML = """
[[accounts]]
name = "main"
identifier = "did:plc:main"
password_env = "PASSWORD_main"

[[sites]]
name = "blog"
token_env = "TOKEN_blog"
accounts = ["main"]

[[sites]]
name = "shop"
token_env = "TOKEN_shop"
accounts = ["main"]
"""
NONE = "job_none"


@pytest.fixture
async def proxy(upstream, store, tmp_path, monkeypatch):
    monkeypatch.setenv("PASSWORD_main", PASSWORD)
    for site in ("blog", "shop"):
        monkeypatch.setenv(f"TOKEN_{site}", token_of(site))
    config = tmp_path / "feedproxy.toml"
    config.write_text(TOML)
    async with running_proxy(upstream.url, store, ADMIN_TOKEN=ADMIN, CONFIG=config) as proxy:
        yield proxy
    QueueOfTest(store.url, store.namespace).close()


@pytest.fixture
async def jobs(proxy):
    """Two jobs of the blog: one has failed, one waits."""
    queue = proxy.web.syndication.queue
    await queue.introduce("w1", {"main": "fp"})
    failed = (await queue.enqueue(submission(POST, group=GROUP))).job
    (leased,) = await queue.take("w1", 1)
    await queue.fail(leased, f"the PDS refuses {POST}")
    waiting = (await queue.enqueue(submission(f"{POST}-2", group=GROUP))).job
    return failed, waiting


class Peer:
    """Somebody in the world, each time at another address: nobody is refused for having guessed too often."""

    def __init__(self, proxy, token=""):
        self.app = proxy.web.app
        self.headers = {"authorization": f"Bearer {token}"} if token else {}
        self.addresses = (f"203.0.113.{number}" for number in range(256))

    async def ask(self, method, path, **options):
        transport = httpx.ASGITransport(self.app, client=(next(self.addresses), 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://feeds.example") as client:
            return await client.request(method, path, headers=self.headers, **options)

    async def seen(self, method, path, **options):
        """All that an answer tells."""
        answer = await self.ask(method, path, **options)
        return answer.status_code, sorted(answer.headers.items()), answer.text


def of_job(job):
    """Every way to ask for it."""
    ways = [(each.method, each.path.format(job=job)) for each in OPERATIONS if "{job}" in each.path]
    return [*ways, ("GET", f"/syndicate/{job}?wait=1")]


LISTS = ("/syndicate", "/syndicate?status=failed", f"/syndicate?group={GROUP}", "/syndicate?limit=1")
OF_OPERATORS = (
    *(f"{base}/{path}" for base in ("/admin", "/ops/api") for path in ("queue", "jobs?site=blog", "dead")),
    *("/health", "/metrics", "/ops", "/ops/events", "/", "/openapi.json"),
)


@pytest.mark.parametrize("token", ["", "a-token-that-somebody-guessed", token_of("shop")[:-1]])
async def test_the_world_learns_of_no_job(proxy, jobs, token):
    peer = Peer(proxy, token)
    for path in LISTS:
        assert (await peer.ask("GET", path)).status_code == 401
    for job in jobs:
        for real, unreal in zip(of_job(job), of_job(NONE), strict=True):
            status, *_ = seen = await peer.seen(*real)
            assert (status, seen) == (401, await peer.seen(*unreal))
    for path in (*OF_OPERATORS, *(f"/admin/jobs/{job}" for job in jobs)):
        answer = await peer.ask("GET", path)
        assert not [word for word in (GROUP, POST, *jobs) if word in answer.text], path


async def test_a_site_learns_of_no_other_sites_jobs(proxy, jobs):
    blog, shop = Peer(proxy, token_of("blog")), Peer(proxy, token_of("shop"))
    before = [(await blog.ask("GET", f"/syndicate/{job}")).json() for job in jobs]
    assert [job["status"] for job in before] == ["failed", "pending"]
    first = (await blog.ask("GET", "/syndicate?limit=1")).json()
    assert (len(first["jobs"]), first["errors"][0]["count"], bool(first["cursor"])) == (1, 1, True)

    for path in LISTS:
        assert (await shop.ask("GET", path)).json() == {"jobs": [], "errors": [], "cursor": None}
    page = (await shop.ask("GET", f"/syndicate?cursor={first['cursor']}")).json()
    assert page["jobs"] == []
    for job in jobs:
        for real, unreal in zip(of_job(job), of_job(NONE), strict=True):
            status, *_ = seen = await shop.seen(*real)
            assert (status, seen) == (404, await shop.seen(*unreal))
    for path in (*OF_OPERATORS, *(f"/admin/jobs/{job}" for job in jobs)):
        answer = await shop.ask("GET", path)
        assert not [word for word in (GROUP, POST, *jobs) if word in answer.text], path

    assert [(await blog.ask("GET", f"/syndicate/{job}")).json() for job in jobs] == before

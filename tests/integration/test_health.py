"""/health turns with each fault within ten seconds, names the part and the remedy, and turns back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource

import httpx
import pytest
import redis

from harness.newsroom import PASSWORD, Newsroom, token_of
from harness.proxy import feed, running_proxy
from harness.upstream import Response, xrpc_error
from harness.valkey import StoreOfTest, valkey_server
from harness.waiting import until

WITHIN_S = 10.0
ADMIN = "admin-token-of-this-test-0123456789"
TOML = """
[[accounts]]
name = "main"
identifier = "alice.test"
password_env = "PASSWORD_main"

[[sites]]
name = "blog"
token_env = "TOKEN_blog"
accounts = ["main"]
"""
PUBLIC = "203.0.113.9"


class Place:
    """A web process with an account, and the newsroom where its posts go."""

    def __init__(self, room, proxy) -> None:
        self.room = room
        self.proxy = proxy

    async def checks(self):
        """What is not well, by part. Whatever it is, requests may come, and strangers see nothing of it."""
        answer = await self.proxy.get("/health")
        assert answer.headers["content-type"] == "application/health+json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.status_code == 200
        document = answer.json()
        wrong = {
            part: found["output"] for part, [found] in document["checks"].items() if found["status"] != "pass"
        }
        assert document["status"] == ("warn" if wrong else "pass")
        assert (await self.proxy.get("/readyz")).status_code == 200
        return wrong

    async def turns_to(self, *parts):
        """Wait until these parts are not well, and no others; what is said of the last."""

        async def turned():
            wrong = await self.checks()
            return (wrong,) if wrong.keys() == set(parts) else None

        [wrong] = await until(turned, deadline_s=WITHIN_S)
        assert await seen_by_strangers(self.proxy) == {"status": "warn" if parts else "pass"}
        return wrong[parts[-1]] if parts else ""


async def seen_by_strangers(proxy, peer=PUBLIC, **headers):
    """All that a peer of the world sees of how this is run."""
    transport = httpx.ASGITransport(proxy.web.app, client=(peer, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://feeds.example") as stranger:
        for path in ("/metrics", "/ops", "/ops/", "/metrics/"):
            answer = await stranger.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
        answer = await stranger.get("/health", headers=headers)
        assert answer.headers.keys() == {
            *("content-type", "content-length", "cache-control", "x-content-type-options"),
        }
        return answer.json()


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSWORD_main", PASSWORD)
    monkeypatch.setenv("TOKEN_blog", token_of("blog"))
    config = tmp_path / "feedproxy.toml"
    config.write_text(TOML)
    return config


@contextlib.asynccontextmanager
async def place_on(store, upstream, path, config, **settings):
    async with (
        Newsroom(store.url, store.namespace, path).open() as room,
        running_proxy(
            upstream.url,
            store,
            CONFIG=config,
            PLC_URL=room.directory.url,
            DATA_DIR=path / "data",
            **settings,
        ) as proxy,
    ):
        yield Place(room, proxy)


@pytest.fixture(scope="module")
def durable(tmp_path_factory):
    """A Valkey that keeps posts as it should."""
    directory = tmp_path_factory.mktemp("durable", numbered=True)
    with valkey_server("--appendonly", "yes", directory=directory) as url:
        yield url


@pytest.fixture
def kept(durable):
    own = StoreOfTest(durable, f"test-{os.urandom(4).hex()}")
    yield own
    own.close()


@pytest.fixture
async def place(kept, upstream, tmp_path, secrets):
    async with place_on(kept, upstream, tmp_path, secrets) as place:
        yield place


async def test_a_worker_that_died(place):
    assert "feedproxy worker" in await place.turns_to("workers")
    async with place.room.host({"main": "alice.test"}) as host, host.working():
        await place.turns_to()
        name = host.workers[0].name
        host.workers[0]._queue.heartbeat = lambda _name: asyncio.Event().wait()
        place.room.stored.silence_worker(name)
        await place.turns_to("workers")
        del host.workers[0]._queue.heartbeat
        host.workers[0].reload()
        await place.turns_to()


async def test_an_account_that_is_locked(place):
    room = place.room
    room.alices.fail("createSession", *[xrpc_error(401, "AuthenticationRequired", "Invalid password")] * 9)
    async with room.host({"main": "alice.test"}) as host, host.working():
        job = (await host.send()).json()
        await host.until_shown(job, waiting_for="credentials")
        assert "The login of main was refused: put a new app password" in await place.turns_to("accounts")
        room.alices._faults.clear()
        await host.ask(job["links"]["retry"], method="POST")
        await host.until_shown(job, status="completed")
        await place.turns_to()


async def test_the_breaker_of_an_account(place):
    room = place.room
    room.alices.fail("putRecord", *[xrpc_error(500, "InternalServerError")] * 30)
    async with room.host({"main": "alice.test"}, ACCOUNT_BREAKER_COOLDOWN=2) as host, host.working():
        jobs = [(await host.send(host.post(number))).json() for number in range(3)]
        text = await place.turns_to("accounts")
        assert "The PDS of main has been failing" in text
        room.alices._faults.clear()
        for job in jobs:
            await host.until_shown(job, status="completed")
        await place.turns_to()


async def test_a_queue_that_is_ten_minutes_old(place):
    async with place.room.host({"main": "alice.test"}) as host:
        await host.posts.queue.introduce("alive", {"main": "fp"})
        job = (await host.send()).json()
        await place.turns_to()
        place.room.stored.let_time_pass(590)
        await place.turns_to()
        place.room.stored.let_time_pass(12)
        assert "has waited for 10 minutes. See whether workers run" in await place.turns_to("queue")
        async with host.working():
            await host.until_shown(job, status="completed")
            await place.turns_to()


async def test_dead_letters_that_grow(place):
    place.room.alices.fail("putRecord", xrpc_error(400, "InvalidRequest", "no"))
    async with place.room.host({"main": "alice.test"}) as host, host.working():
        job = (await host.send()).json()
        await host.until_shown(job, status="failed")
        assert "1 posts failed for good in the last hour" in await place.turns_to("dead_letters")
        await host.ask(job["links"]["retry"], method="POST")
        await host.until_shown(job, status="completed")
        await place.turns_to()


async def test_a_disk_that_is_full(place, kept):
    """The file of the log must not grow, as on a full disk: the server refuses posts, and goes on after."""
    async with place.room.host({"main": "alice.test"}) as host, host.working():
        await place.turns_to()
        with contextlib.closing(redis.Redis.from_url(kept.url)) as client:
            pid = client.info("server")["process_id"]
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
            try:
                client.set(f"{kept.namespace}:growing", "x" * 10_000)

                async def refuses():
                    with contextlib.suppress(redis.exceptions.ResponseError):
                        client.set(f"{kept.namespace}:growing", "x" * 10_000)
                        return False
                    return True

                await until(refuses, deadline_s=WITHIN_S)
                wrong = {}

                async def told():
                    wrong.update(await place.checks())
                    return "durability" in wrong

                await until(told, deadline_s=WITHIN_S)
                assert "its disk is full or broken. Make room" in wrong["durability"]
                assert await seen_by_strangers(place.proxy) == {"status": "warn"}
            finally:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            await place.turns_to()


async def test_a_store_that_may_forget_posts(upstream, store, tmp_path, secrets):
    """The tests' own server keeps nothing on disk."""
    async with place_on(store, upstream, tmp_path, secrets) as place:
        assert "Set appendonly yes" in await place.turns_to("workers", "durability")
        store._client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert "allkeys-lru" in await place.turns_to("workers", "durability", "eviction")
        finally:
            store._client.config_set("maxmemory-policy", "noeviction")
        await place.turns_to("workers", "durability")


async def test_a_store_that_takes_no_posts_although_it_answers(place, kept):
    async with place.room.host({"main": "alice.test"}) as host, host.working():
        await place.turns_to()
        with contextlib.closing(redis.Redis.from_url(kept.url)) as client:
            policy = client.config_get("maxmemory-policy")
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1mb")
            try:
                assert (await host.send()).status_code == 503

                async def told():
                    return "Raise its maxmemory" in (await place.checks()).get("durability", "")

                await until(told, deadline_s=WITHIN_S)
            finally:
                client.config_set("maxmemory", "0")
                client.config_set("maxmemory-policy", policy["maxmemory-policy"])
        await place.turns_to()


async def test_redis_down(upstream, tmp_path, secrets):
    with valkey_server("--appendonly", "yes", directory=tmp_path) as url:
        store = StoreOfTest(url, "test-down")
        async with place_on(store, upstream, tmp_path, secrets) as place:
            await place.turns_to("workers")
            with (
                contextlib.closing(redis.Redis.from_url(url)) as client,
                contextlib.suppress(redis.RedisError),
            ):
                client.shutdown()
            assert "See that Redis runs" in await place.turns_to("store", "queue")
            with valkey_server("--appendonly", "yes", directory=tmp_path):
                await place.turns_to("workers")


async def test_upstream_down(place, upstream):
    async with place.room.host({"main": "alice.test"}) as host, host.working():
        await place.turns_to()
        upstream.answer = lambda _request: Response(close=True)
        for number in range(5):
            await place.proxy.get(feed(f"a{number}.test"))
        assert "FEEDPROXY_UPSTREAM" in await place.turns_to("upstream")


@pytest.mark.parametrize("asked_before", [True, False], ids=["copies are held", "nothing is held"])
async def test_an_upstream_that_comes_back_is_noticed_although_nobody_asks(start, upstream, asked_before):
    """By one question, of whichever process."""
    settings = {"BREAKER_THRESHOLD": 1, "BREAKER_COOLDOWN": 1, "RETRY_MAX": 1}
    async with start(**settings) as proxy, start(**settings) as other:

        async def states():
            reports = [(await each.get("/health")).json() for each in (proxy, other)]
            return {report["checks"]["upstream"][0]["status"] for report in reports}

        if asked_before:
            for _ in range(2):
                await proxy.get(feed())
        upstream.answer, answer = (lambda _request: Response(close=True)), upstream.answer
        await proxy.get(feed("other.test"))

        async def are(state):
            return await states() == {state}

        await until(lambda: are("warn"), deadline_s=WITHIN_S)
        before = len(upstream.requests)
        upstream.answer = answer
        await until(lambda: are("pass"), deadline_s=2 * WITHIN_S)
        assert len(upstream.requests) <= before + 2, "one probe, and one that found the upstream still away"


async def test_while_the_upstream_is_away_it_is_hardly_asked(start, upstream):
    """Each cooldown ends with one probe, whose refusal begins the next."""
    async with start(BREAKER_THRESHOLD=1, BREAKER_COOLDOWN=1, RETRY_MAX=1) as proxy:
        upstream.answer = lambda _request: Response(close=True)
        await proxy.get(feed())
        began_at = asyncio.get_running_loop().time()
        await until(lambda: len(upstream.requests) >= 3, deadline_s=3 * WITHIN_S)
        assert asyncio.get_running_loop().time() - began_at >= 2, "two cooldowns"


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        (PUBLIC, {}),
        (f"::ffff:{PUBLIC}", {}),
        ("2001:db8::1", {}),
        ("100.64.0.1", {}),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.1"}),
        ("127.0.0.1", {"forwarded": "for=10.0.0.1"}),
        ("127.0.0.1", {"x-real-ip": "127.0.0.1"}),
        ("10.0.0.1", {"via": "1.1 proxy"}),
    ],
)
async def test_strangers_learn_nothing(start, peer, headers):
    async with start(ADMIN_TOKEN=ADMIN) as proxy:
        assert await seen_by_strangers(proxy, peer, **headers) == {"status": "pass"}


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.1.2.3", "::1", "fd00::1", "fe80::1", "::ffff:192.168.1.1"])
async def test_this_host_and_private_networks_see_everything(start, peer):
    async with start() as proxy:
        transport = httpx.ASGITransport(proxy.web.app, client=(peer, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://p") as client:
            assert "checks" in (await client.get("/health")).json()
            assert "feedproxy_requests_total" in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[::1]", "10.1.2.3", "localhost", "LOCALHOST.:8080"),
        *("proxy-1:8080", "feeds.example", "Feeds.Example:443"),
    ],
)
async def test_a_name_that_nobody_else_can_have_lead_here_shows_everything(start, host):
    async with start(PUBLIC_URL="https://feeds.example", ADMIN_TOKEN=ADMIN) as proxy:
        assert "checks" in (await proxy.get("/health", host=host)).json()
        assert "feedproxy_requests_total" in (await proxy.get("/metrics", host=host)).text
        assert (await proxy.get("/ops", host=host)).status_code != 404


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "feeds.example.evil.example", "a.b."],
)
async def test_a_page_that_has_its_name_lead_here_reads_nothing(start, host):
    """DNS rebinding: the peer is the operator's own browser, the name the page's."""
    async with start(PUBLIC_URL="https://feeds.example", ADMIN_TOKEN=ADMIN) as proxy:
        assert await seen_by_strangers(proxy, "127.0.0.1", host=host) == {"status": "pass"}
        right = {"authorization": f"Bearer {ADMIN}", "host": host}
        assert "checks" in (await proxy.get("/health", **right)).json()


async def test_the_admin_token_opens_from_anywhere(start):
    async with start(ADMIN_TOKEN=ADMIN) as proxy:
        transport = httpx.ASGITransport(proxy.web.app, client=(PUBLIC, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://p") as client:
            right = {"authorization": f"Bearer {ADMIN}"}
            for path, mark in (("/health", '"checks"'), ("/metrics", "feedproxy_jobs{")):
                assert mark in (await client.get(path, headers=right)).text
                wrong = await client.get(path, headers={"authorization": "Bearer guess"})
                assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
            statuses = [
                (await client.get("/metrics", headers={"authorization": f"Bearer {n}"})).status_code
                for n in range(12)
            ]
            assert statuses[-1] == 429
            assert (await client.get("/metrics", headers=right)).status_code == 429
            assert (await client.get("/health")).json() == {"status": "pass"}


async def test_without_a_token_a_header_opens_nothing(start):
    async with start() as proxy:
        assert await seen_by_strangers(proxy, authorization="Bearer ") == {"status": "pass"}


async def test_a_listener_for_operators_leaves_nothing_on_the_other(start):
    async with start(OPS_LISTEN="127.0.0.1:1", ADMIN_TOKEN=ADMIN) as proxy:
        assert await seen_by_strangers(proxy, "127.0.0.1") == {"status": "pass"}
        shown = {"authorization": f"Bearer {ADMIN}"}
        assert await seen_by_strangers(proxy, "127.0.0.1", **shown) == {"status": "pass"}
        assert (await proxy.get("/readyz")).status_code == 200
        transport = httpx.ASGITransport(proxy.web.ops, client=(PUBLIC, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://p") as client:
            assert "checks" in (await client.get("/health")).json()
            assert "feedproxy_jobs{" in (await client.get("/metrics")).text
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get(feed())).status_code == 404

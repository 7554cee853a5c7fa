"""Who may see the dashboard and act in it, and what it costs while somebody or nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx
import pytest

from harness.proxy import feed, listening_proxy, running_proxy
from harness.valkey import StoreOfTest
from harness.waiting import until
from proxy.ops.dashboard.login import COOKIE, SESSION_S
from proxy.ops.dashboard.stream import StreamPolicy
from proxy.version import VERSION

TOKEN = "the-admin-token-of-32-characters-x"
PUBLIC = "203.0.113.9"
ORIGIN = "http://feeds"
READS = ("/ops/events", "/ops/api/queue", "/ops/api/jobs?site=blog", "/ops/api/jobs/job_x", "/ops/api/dead")
WRITES = (
    ("POST", "/ops/api/pause"),
    ("POST", "/ops/api/resume"),
    ("DELETE", "/ops/api/jobs/job_x"),
    ("POST", "/ops/api/jobs/job_x/retry"),
    ("POST", "/ops/api/dead/retry"),
    ("POST", "/ops/api/dead/drop"),
)


@pytest.fixture
async def proxy(start, clock):
    async with start(clock=clock, ADMIN_TOKEN=TOKEN) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def browser(proxy, *, peer="127.0.0.1", base_url=ORIGIN, app=None):
    """A browser somewhere, which keeps cookies and says which page it is on."""
    transport = httpx.ASGITransport(app or proxy.web.app, client=(peer, 4711))
    async with httpx.AsyncClient(
        transport=transport, base_url=base_url, headers={"origin": base_url}
    ) as client:
        yield client


@pytest.fixture
async def operator(proxy):
    """A browser that has logged in."""
    async with browser(proxy) as client:
        assert (await log_in(client)).headers["location"] == "/ops"
        yield client


async def log_in(client, token=TOKEN, **headers):
    return await client.post("/ops/login", data={"token": token}, headers=headers)


async def statuses(client, requests=None):
    """What each read and write is answered with."""
    requests = requests or [*(("GET", path) for path in READS), *WRITES]
    return {(await client.request(method, path)).status_code for method, path in requests}


class TestWhoIsLetIn:
    async def test_the_token_opens_once_and_is_not_in_the_cookie(self, proxy):
        async with browser(proxy) as client:
            answer = await client.get("/ops")
            assert (answer.status_code, answer.headers["location"]) == (303, "/ops/login")
            assert "Admin token" in (await client.get("/ops/login")).text
            answer = await log_in(client)
            cookie = answer.headers["set-cookie"]
            assert {"HttpOnly", "SameSite=strict", "Path=/ops", f"Max-Age={SESSION_S:.0f}"} <= set(
                cookie.split("; ")
            )
            assert TOKEN not in cookie
            assert "Secure" not in cookie
            assert "Failed for good" in (await client.get("/ops")).text
            assert (await client.get("/ops/login")).headers["location"] == "/ops"

    async def test_over_tls_the_cookie_never_travels_in_the_clear(self, proxy):
        async with browser(proxy, base_url="https://feeds.example") as client:
            assert "Secure" in (await log_in(client)).headers["set-cookie"].split("; ")

    async def test_nothing_is_to_be_had_without_a_session(self, proxy):
        async with browser(proxy) as client:
            assert await statuses(client) == {401}
            client.headers["authorization"] = f"Bearer {TOKEN}"
            assert await statuses(client) == {401}, "the token itself is for /admin"

    async def test_wrong_tokens_are_refused_and_counted_with_all_others(self, proxy):
        async with browser(proxy) as client:
            answers = [await log_in(client, f"guess {number}") for number in range(11)]
            assert [answer.status_code for answer in answers] == [401] * 10 + [429]
            assert int(answers[-1].headers["retry-after"]) <= 10
            assert "This is not the admin token." in answers[0].text
            assert (await log_in(client)).status_code == 429
            refused = await client.get("/admin/queue", headers={"authorization": f"Bearer {TOKEN}"})
            assert refused.status_code == 429
            assert client.cookies.get(COOKIE) is None

    async def test_strangers_see_no_more_than_a_form(self, proxy):
        async with browser(proxy, peer=PUBLIC) as client:
            for path in ("/ops", "/ops/"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
            assert await statuses(client) == {401}
            form = (await client.get("/ops/login")).text
            assert "Admin token" in form
            assert VERSION not in form
            await log_in(client)
            assert "Failed for good" in (await client.get("/ops")).text

    async def test_without_a_token_set_operators_are_told_and_strangers_are_not(self, start):
        async with start() as proxy, browser(proxy) as client, browser(proxy, peer=PUBLIC) as stranger:
            answer = await client.get("/ops")
            assert (answer.status_code, "FEEDPROXY_ADMIN_TOKEN" in answer.text) == (404, True)
            assert (await stranger.get("/ops")).json()["error"] == "NotFound"
            for path in ("/ops/login", "/ops/static/ops.js", *READS):
                assert (await client.get(path)).status_code == 404

    async def test_with_a_listener_of_its_own_it_is_there_and_nowhere_else(self, start):
        async with start(ADMIN_TOKEN=TOKEN, OPS_LISTEN="127.0.0.1:1") as proxy, browser(proxy) as client:
            for path in ("/ops", "/ops/login", "/ops/static/ops.js", *READS):
                assert (await client.get(path)).status_code == 404
            async with browser(proxy, peer=PUBLIC, app=proxy.web.ops) as operator:
                assert await statuses(operator) == {401}, "the token is asked for there, too"
                await log_in(operator)
                assert (await operator.get("/ops")).status_code == 200


class TestSessions:
    async def test_it_ends(self, proxy, operator, clock):
        clock.advance(SESSION_S - 1)
        assert (await operator.get("/ops/api/queue")).status_code == 200
        clock.advance(1)
        assert (await operator.get("/ops/api/queue")).status_code == 401

    async def test_what_was_tampered_with_opens_nothing(self, proxy, operator):
        whole = operator.cookies[COOKIE]
        ends, nonce, signature = whole.split(".")
        for forged in (
            f"{int(ends) + 1}.{nonce}.{signature}",
            f"{ends}.{nonce[::-1]}.{signature}",
            f"{ends}.{nonce}.{signature[::-1]}",
            f"{ends}.{nonce}.",
            f"{whole}0",
            TOKEN,
            "",
        ):
            operator.cookies.clear()
            answer = await operator.get("/ops/api/queue", headers={"cookie": f"{COOKIE}={forged}"})
            assert answer.status_code == 401, forged
        answer = await operator.get("/ops/api/queue", headers={"cookie": f"{COOKIE}={whole}"})
        assert answer.status_code == 200

    async def test_all_processes_know_it_and_another_token_voids_it(self, start, operator, clock):
        whole = {"cookie": f"{COOKIE}={operator.cookies[COOKIE]}"}
        async with start(clock=clock, ADMIN_TOKEN=TOKEN) as twin, browser(twin) as client:
            assert (await client.get("/ops/api/queue", headers=whole)).status_code == 200
        async with start(clock=clock, ADMIN_TOKEN=TOKEN[::-1]) as other, browser(other) as client:
            assert (await client.get("/ops/api/queue", headers=whole)).status_code == 401

    async def test_who_logs_out_has_no_cookie_any_more(self, operator):
        answer = await operator.post("/ops/logout")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ops/login")
        assert operator.cookies.get(COOKIE) is None


class TestOtherPages:
    """What pages of other sites can have a browser do that is logged in."""

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://feeds.evil.example"])
    async def test_they_change_nothing(self, operator, proxy, origin):
        operator.headers["origin"] = origin
        assert await statuses(operator, WRITES) == {403}
        assert (await operator.post("/ops/logout")).status_code == 403
        assert (await log_in(operator)).status_code == 403
        del operator.headers["origin"]
        assert await statuses(operator, WRITES) == {403}
        assert not (await proxy.web.syndication.controls(proxy.clock).overview([])).paused

    async def test_they_cannot_frame_it_or_bring_in_scripts(self, operator):
        for path in ("/ops", "/ops/login"):
            headers = (await operator.get(path)).headers
            if "location" in headers:
                continue
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert "://" not in policy
            assert headers["cache-control"] == "no-store"
        page = (await operator.get("/ops")).text
        assert "style=" not in page
        assert "<script>" not in page
        assert "://" not in page

    async def test_our_own_address_may_be_another_than_the_proxy_before_us_says(self, start):
        own = "https://feeds.example:8443"
        async with start(ADMIN_TOKEN=TOKEN, PUBLIC_URL=own) as proxy, browser(proxy) as client:
            assert (await log_in(client, origin=own)).status_code == 303


async def test_what_it_does_is_done(operator, proxy):
    assert (await operator.post("/ops/api/pause")).json() == {"paused": "everything"}
    assert (await proxy.web.syndication.controls(proxy.clock).overview([])).paused
    assert (await operator.get("/ops/api/queue")).json()["paused"] is True
    assert (await operator.post("/ops/api/resume", json={})).json() == {"resumed": "everything"}


async def test_files_are_fetched_once(operator):
    answer = await operator.get("/ops/static/ops.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    again = await operator.get("/ops/static/ops.js", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("nothing.js", "..%2Flogin.py", ""):
        assert (await operator.get(f"/ops/static/{name}")).status_code == 404


class Viewer:
    """One who listens to the event stream."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def hears(self):
        """The id and the document of the next event."""
        event = {}
        async for line in self._lines:
            name, _, value = line.partition(": ")
            event[name] = value
            if not line and "data" in event:
                return event["id"], json.loads(event["data"])
        return None


@pytest.fixture
async def look(proxy, operator):
    """Open event streams at a real listener: `await look()`."""
    cookie = {"cookie": f"{COOKIE}={operator.cookies[COOKIE]}"}
    async with contextlib.AsyncExitStack() as stack:
        host, port = await stack.enter_async_context(listening_proxy(proxy))
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30)
        )

        async def open_stream(**headers):
            stream = client.stream("GET", "/ops/events", headers=cookie | headers)
            return Viewer(await stack.enter_async_context(stream))

        yield open_stream


class TestStream:
    async def test_numbers_are_live(self, look, proxy):
        viewer = await look()
        assert viewer.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        _, first = await viewer.hears()
        assert (first["reads"]["total"], first["steps"], first["queue"]["paused"]) == (0, [], False)
        await proxy.get(feed())
        await proxy.get(feed())
        proxy.clock.advance(5)
        seen, second = await viewer.hears()
        assert (second["reads"]["total"], second["upstream"]["total"]) == (2, 1)
        [[at, reads, ratio, upstream, *_]] = second["steps"]
        assert (at, reads, ratio, upstream) == (float(seen), 0.4, 0.5, 0.2)
        _, third = await viewer.hears()
        assert third["steps"] == [], "what was seen is not told again"
        again = await look(**{"last-event-id": seen})
        assert (await again.hears())[1]["steps"] == []
        assert len((await (await look(**{"last-event-id": "?"})).hears())[1]["steps"]) == 1

    async def test_a_stopping_process_ends_them_at_once(self, look, proxy):
        viewers = [await look() for _ in range(3)]
        for viewer in viewers:
            await viewer.hears()
        proxy.process.stopping.set()
        async with asyncio.timeout(StreamPolicy().every_s):
            assert [await viewer.hears() for viewer in viewers] == [None] * 3
        assert await (await look()).hears() is None

    async def test_they_end_with_the_session(self, look, proxy):
        viewer = await look()
        await viewer.hears()
        proxy.clock.advance(SESSION_S)
        async with asyncio.timeout(30):
            while await viewer.hears() is not None:
                pass
        assert (await look()).answer.status_code == 401

    async def test_there_are_only_so_many(self, look):
        viewers = [await look() for _ in range(StreamPolicy().most)]
        refused = await look()
        assert (refused.answer.status_code, refused.answer.headers["retry-after"]) == (429, "5")
        await viewers[0].answer.aclose()

        async def admitted():
            return (await look()).answer.status_code == 200

        await until(admitted)

    async def test_what_many_see_is_asked_once_and_by_nobody_never(self, look, proxy):
        asked = []
        queue = proxy.web.syndication.queue
        run = queue.run

        async def counted(script, args):
            asked.append(script)
            return await run(script, args)

        queue.run = counted
        viewers = [await look() for _ in range(5)]
        for viewer in viewers:
            await viewer.hears()
        assert sorted(asked) == ["queue_accounts", "queue_standing"]
        for viewer in viewers:
            await viewer.answer.aclose()
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("ops ")])
        asked.clear()
        proxy.clock.advance(3600)
        await until(lambda: proxy.process.board.totals(proxy.clock.steady()).sum("feedproxy_processes"))
        assert asked == [], "an hour has gone by, and the gauges were written since"


async def test_without_the_store_it_says_so(upstream, tmp_path, clock):
    nowhere = StoreOfTest(f"unix://{tmp_path}/none.sock", "test")
    async with (
        running_proxy(upstream.url, nowhere, clock=clock, ADMIN_TOKEN=TOKEN) as proxy,
        listening_proxy(proxy) as (host, port),
        browser(proxy) as client,
    ):
        await log_in(client)
        cookie = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
        async with (
            httpx.AsyncClient(timeout=30) as viewer,
            viewer.stream("GET", f"http://{host}:{port}/ops/events", headers=cookie) as answer,
        ):
            _, told = await Viewer(answer).hears()
        assert (told["status"], told["queue"], told["accounts"]) == ("warn", None, None)
        assert {"store", "queue"} <= {finding["part"] for finding in told["findings"]}
        assert (await client.post("/ops/api/pause")).json()["error"] == "StoreUnavailable"

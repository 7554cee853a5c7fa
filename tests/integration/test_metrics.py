"""/metrics tells what happened: each read once, in whichever process and on whichever way it was answered."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import signal
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.proxy import feed, listening_proxy, running_proxy
from harness.upstream import Response, json_response, xrpc_error
from harness.valkey import StoreOfTest, valkey_server
from harness.waiting import until
from integration.processes import ServeProcess, is_running
from proxy.ops.families import FAMILIES

READS = "feedproxy_requests_total"
METHOD = "app.bsky.feed.getAuthorFeed"
HEAD = "GET {} HTTP/1.1\r\nHost: feeds.example\r\nAccept-Encoding: gzip, br\r\n\r\n"


class Numbers:
    """What was scraped: values by name and labels."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name, **labels):
        """The sum of what has these labels."""
        return sum(
            value
            for (own, given), value in self._values.items()
            if own == name and labels.items() <= dict(given).items()
        )

    def outcomes(self, method=METHOD):
        return {
            dict(given)["outcome"]: value
            for (own, given), value in self._values.items()
            if own == READS and value and ("method", method) in given
        }


async def scrape(client):
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return Numbers(answer.text)


async def test_each_read_is_counted_once_by_what_became_of_it(start, upstream, clock):
    async with start(clock=clock, CACHE_TTL=60, NEGATIVE_TTL=30) as proxy:
        await proxy.get(feed())  # miss
        await proxy.get(feed())  # hit
        await proxy.client.head(feed())  # hit
        await proxy.get(feed(), if_none_match="*")  # hit, 304
        await proxy.pass_time(3600)
        await proxy.get(feed())  # stale
        await proxy.landed()
        answer = upstream.answer
        upstream.answer = lambda _: xrpc_error(400, "InvalidRequest", "Profile not found")
        await proxy.get(feed("nobody.test"))  # miss
        await proxy.get(feed("nobody.test"))  # negative
        upstream.answer = lambda _: json_response({"feed": []}, headers={"cache-control": "no-store"})
        await proxy.get(feed("private.test"))  # bypass
        upstream.answer = lambda _: Response(status=500)
        await proxy.get(feed("broken.test"))  # error
        upstream.answer = answer
        await proxy.get(f"{feed()}&limit=many")  # error, of a method that there is
        await proxy.get("/xrpc/com.example.none")  # errors, of none
        await proxy.get("/xrpc/%2e%2e")
        await proxy.client.options(feed())  # no read
        numbers = await scrape(proxy.client)
    expected = {"miss": 2, "hit": 3, "stale": 1, "negative": 1, "bypass": 1, "error": 2}
    assert numbers.outcomes() == expected
    assert numbers.outcomes("other") == {"error": 2}
    assert numbers(READS) == 12
    assert numbers("feedproxy_request_seconds_count") == 12
    assert numbers("feedproxy_unshared_questions") == 1


async def test_who_asks_at_the_same_time_is_collapsed(start, upstream):
    async with start() as proxy:
        upstream.hold = asyncio.Event()
        asking = [asyncio.create_task(proxy.get(feed())) for _ in range(20)]
        await until(lambda: proxy.web.reading.service.followers == 20)
        numbers = await scrape(proxy.client)
        assert (numbers("feedproxy_flights"), numbers("feedproxy_followers")) == (1, 20)
        upstream.hold.set()
        await asyncio.gather(*asking)
        await proxy.landed()
        numbers = await scrape(proxy.client)
    assert numbers.outcomes() == {"miss": 1, "collapsed": 19}
    assert (numbers("feedproxy_flights"), numbers("feedproxy_followers")) == (0, 0)
    assert numbers("feedproxy_flights_started_total") == 1
    assert numbers("feedproxy_memory_entries") == 1
    assert 0 < numbers("feedproxy_memory_bytes") < numbers("feedproxy_memory_limit_bytes") == 64 * 2**20


async def test_hits_below_asgi_are_counted_as_well(start, upstream, clock):
    async with (
        start(clock=clock, CACHE_TTL=60) as proxy,
        listening_proxy(proxy) as (host, port),
        Browser(host, port) as client,
    ):
        for _ in range(10):
            await client.get(feed())
        await proxy.pass_time(120)
        upstream.hold = asyncio.Event()  # its refresh does not land
        for _ in range(5):
            assert b"detail=stale-while-revalidate" in await client.get(feed())
        upstream.hold.set()
        numbers = await scrape(proxy.client)
        short = numbers(READS) - numbers("feedproxy_request_seconds_count")
    assert numbers.outcomes() == {"miss": 1, "hit": 9, "stale": 5}
    assert short == 14, "all but the first take the short way, and are not timed"


async def test_what_is_asked_of_the_upstream_is_counted(start, upstream):
    async with start(RETRY_MAX=3, RETRY_BASE_MS=20, RETRY_CAP_MS=20, BREAKER_THRESHOLD=2) as proxy:
        answers = iter([Response(status=502), Response(close=True), json_response({"feed": []})])
        upstream.answer = lambda _: next(answers)
        await proxy.get(feed())
        numbers = await scrape(proxy.client)
        total = "feedproxy_upstream_requests_total"
        asked = {status: numbers(total, status=status) for status in ("502", "broken", "200")}
        assert asked == {"502": 1, "broken": 1, "200": 1}
        assert numbers(total) == 3
        assert numbers("feedproxy_upstream_retries_total") == 2
        assert 0 < numbers("feedproxy_upstream_backoff_seconds_total") <= 0.04
        assert numbers("feedproxy_limiter_wait_seconds_count") == 3
        assert numbers("feedproxy_upstream_breaker", state="closed") == 1
        upstream.answer = lambda _: Response(status=503)  # refused there, not here
        await proxy.get(feed("busy.test"))
        upstream.answer = lambda _: Response(close=True)
        for number in range(4):
            await proxy.get(feed(f"a{number}.test"))
        numbers = await scrape(proxy.client)
    assert numbers("feedproxy_upstream_breaker", state="open") == 1
    assert numbers("feedproxy_upstream_breaker", state="closed") == 0
    assert numbers("feedproxy_limiter_refusals_total", cause="closed") == 3
    assert numbers("feedproxy_limiter_refusals_total") == 3, "of no other cause"
    assert 0 < numbers("feedproxy_upstream_closed_seconds") <= 60


async def test_refusals_are_counted_by_their_cause(start):
    """Of three questions one has a turn, by the budget, or by the share of the client."""
    small = {"UPSTREAM_RPS": 0.01, "UPSTREAM_BURST": 1}
    for cause, settings in {"budget": small, "share": {"CLIENT_MISSES_PER_MIN": 1}}.items():
        async with start(NAMESPACE=cause, **settings) as proxy:
            for number in range(3):
                await proxy.get(feed(f"{cause}{number}.test"))
            numbers = await scrape(proxy.client)
        assert numbers("feedproxy_limiter_refusals_total", cause=cause) == 2
        assert numbers("feedproxy_limiter_refusals_total") == 2


@pytest.mark.parametrize(("policy", "evicts"), [("noeviction", 0), ("volatile-lru", 1)])
async def test_whether_a_full_store_makes_room_is_told(upstream, policy, evicts):
    with valkey_server("--maxmemory", "64mb", "--maxmemory-policy", policy) as url:
        store = StoreOfTest(url, "test")
        async with running_proxy(upstream.url, store) as proxy:
            numbers = await scrape(proxy.client)
        store.close()
    for name in ("cache", "queue"):
        assert numbers(f"feedproxy_{name}_store_evicts") == evicts
        assert numbers(f"feedproxy_{name}_store_limit_bytes") == 64 * 2**20


async def test_labels_are_bounded(start):
    async with start() as proxy:
        for number in range(50):
            await proxy.get(f"/xrpc/com.example.m{number}")
        text = (await proxy.get("/metrics")).text
    told = {dict(given).get("method") for (name, given) in Numbers(text)._values if name == READS}
    assert told == {"other"}


async def test_openmetrics_is_spoken_to_who_asks_for_it(start):
    async with start() as proxy:
        answer = await proxy.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


class Browser:
    """One connection to a proxy, made anew when it breaks. What it sends may be answered below ASGI."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_exc):
        if self._streams is not None:
            self._streams[1].close()

    async def get(self, target: str) -> bytes:
        """The head of the answer. Raises OSError or EOFError when there is none."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        try:
            writer.write(HEAD.format(target).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        except (OSError, EOFError):
            writer.close()
            self._streams = None
            raise
        return head


class Load:
    """A load generator that knows how many requests it has sent, and how many were answered."""

    def __init__(self, serve: ServeProcess) -> None:
        self._port = int(serve.base_url.rpartition(":")[2])
        self.sent = 0
        self.answered = 0

    async def run(self, clients: int, each: int) -> None:
        """So many at a time, one in ten of which asks for what there is not."""
        await asyncio.gather(*(self._browse(number, each) for number in range(clients)))

    async def _browse(self, number: int, each: int) -> None:
        async with Browser("127.0.0.1", self._port) as browser:
            for turn in range(each):
                target = feed(f"a{(number + turn) % 5}.test") if turn % 10 else "/xrpc/com.example.none"
                self.sent += 1
                with contextlib.suppress(OSError, EOFError):
                    await browser.get(target)
                    self.answered += 1


async def test_eight_processes_count_what_the_load_generator_sent(upstream, tmp_path):
    """Also when some die and are replaced; and whoever is asked, numbers never go backwards."""
    settings = {"UPSTREAM": upstream.url, "WORKERS": 8, "UPSTREAM_RPS": 1000, "UPSTREAM_BURST": 100}
    with ServeProcess(tmp_path / "data", **settings) as serve:
        await asyncio.to_thread(serve.wait_ready)
        load = Load(serve)
        await load.run(clients=24, each=50)
        before = await fresh(serve)
        assert before(READS) == load.sent == load.answered == 1200
        assert before(READS, method="other", outcome="error") == 120
        assert before(READS, method=METHOD, outcome="miss") == upstream.count == 5
        assert before("feedproxy_request_seconds_count") < 1200, "nothing took the short way"
        assert before("feedproxy_connections") >= 1, "the one that asked"
        victims = serve.web_pids()[:2]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(is_running, victims)))
        assert (await fresh(serve))(READS) == 1200
        await until(lambda: all_there(serve))
        await load.run(clients=24, each=50)
        assert (await fresh(serve))(READS) == load.sent == 2400
        # While it is busy: what was cut off was counted or not.
        seen = [2400.0]
        running = asyncio.create_task(load.run(clients=16, each=200))
        os.kill(serve.web_pids()[0], signal.SIGKILL)
        while not running.done():
            seen.append((await fresh(serve))(READS))
        await running
        seen.append((await fresh(serve))(READS))
        assert seen == sorted(seen)
        assert load.answered <= seen[-1] <= load.sent


async def all_there(serve) -> bool:
    return (await fresh(serve))("feedproxy_processes", role="web") == 8


async def fresh(serve) -> Numbers:
    """What some process of the host tells, asked over a connection of its own."""
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, body = await asyncio.to_thread(serve.get, "/metrics")
            assert status == 200
            return Numbers(body.decode())


async def test_a_worker_serves_probes_and_metrics(store, tmp_path):
    command = (sys.executable, "-P", "-m", "proxy.cli", "worker", "--port", "0")
    settings = {"REDIS_URL": store.url, "NAMESPACE": store.namespace, "WORKER_CONCURRENCY": 5}
    with ServeProcess(tmp_path / "data", command=command, **settings) as worker:
        await asyncio.to_thread(worker.wait_ready)

        async def at_work():
            numbers = await fresh(worker)
            return numbers if numbers("feedproxy_workers") == 1 else None

        numbers = await until(at_work)
        assert numbers("feedproxy_pool_size") == 5
        assert numbers("feedproxy_processes", role="worker") == 1
        status, body = await asyncio.to_thread(worker.get, "/health")
        assert (status, b'"queue"' in body, b'"upstream"' in body) == (200, True, False)
        assert (await asyncio.to_thread(worker.get, "/livez"))[0] == 200
        assert (await asyncio.to_thread(worker.get, feed()))[0] == 404
        assert await asyncio.to_thread(worker.terminate) == 0


async def test_a_worker_that_cannot_work_says_so(tmp_path):
    command = (sys.executable, "-P", "-m", "proxy.cli", "worker", "--port", "0")
    with ServeProcess(tmp_path / "data", command=command, REDIS_URL="unix:///nowhere/s") as worker:
        await asyncio.to_thread(worker.wait_ready)
        status, body = await asyncio.to_thread(worker.get, "/health")
        assert (status, b"See that Redis runs" in body) == (503, True)
        assert (await asyncio.to_thread(worker.get, "/readyz"))[0] == 200


async def test_a_listener_for_operators(upstream, tmp_path):
    with ServeProcess(tmp_path / "data", UPSTREAM=upstream.url, OPS_LISTEN="127.0.0.1:0", WORKERS=2) as serve:
        await asyncio.to_thread(serve.wait_ready)
        assert (await asyncio.to_thread(serve.get, "/metrics"))[0] == 404
        assert (await asyncio.to_thread(serve.get, feed()))[0] == 200
        port = serve.wait_event("operators_listening")["port"]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await scrape(client))(READS) == 1
            assert "checks" in (await client.get("/health")).json()
            assert (await client.get(feed())).status_code == 404
        assert await asyncio.to_thread(serve.terminate) == 0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_are_as_prometheus_wants_them(family):
    assert family.name.startswith("feedproxy_")
    assert not family.name.endswith("_total")
    assert family.help.endswith(".")
    assert ("_seconds" in family.name) == (family.kind == "histogram" or family.in_seconds)

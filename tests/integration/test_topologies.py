"""Both stores on whatever a REDIS_URL may name: one server, TLS, Sentinels, a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from types import SimpleNamespace

import pytest
import redis
from pydantic import SecretStr

from harness.proxy import feed, running_proxy
from harness.queue import queue_on, submission
from harness.redis_servers import KINDS, redis_server, script_of
from harness.topologies import ESCAPED, PASSWORD, certificate, cluster, sentinel_set, tls_before
from harness.valkey import valkey_server
from harness.waiting import until
from integration.publishing import ALICE, World, post_of, publish
from proxy.clock import SystemClock
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.resilience.limiter import Rate
from proxy.resilience.pace import LocalPace, SharedPace
from proxy.store import connection, subscription
from proxy.store.connection import connect
from proxy.store.persistence import persistence_of
from proxy.store.queue_store import connect_queue
from proxy.store.servers import servers_of
from proxy.syndication.durability import MEMORY, Durability

PLACES = ("unix", "tls", "sentinel", "cluster")


def new_script():
    """One that no server knows yet: it counts how often it ran."""
    return script_of(f"return redis.call('INCR', KEYS[1]) -- {uuid.uuid4()}")


@pytest.fixture(scope="module")
def sentinels():
    with sentinel_set() as running:
        yield running


@pytest.fixture(scope="module")
def locked():
    """A server that wants a password."""
    with valkey_server() as url:
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            client.config_set("requirepass", PASSWORD)
        yield url


@pytest.fixture(scope="module")
def three_masters():
    with cluster() as running:
        yield running


@pytest.fixture(params=PLACES)
async def place(request, tmp_path):
    """The URL of one of them, and a namespace of the test's own."""
    async with contextlib.AsyncExitStack() as stack:
        match request.param:
            case "unix":
                url = request.getfixturevalue("valkey_url")
            case "tls":
                cert, key = certificate(tmp_path)
                inner = request.getfixturevalue("locked")
                port = await stack.enter_async_context(tls_before(inner.removeprefix("unix://"), cert, key))
                url = f"rediss://:{ESCAPED}@127.0.0.1:{port}?ssl_ca_certs={cert}"
            case "sentinel":
                url = request.getfixturevalue("sentinels").url
            case "cluster":
                url = request.getfixturevalue("three_masters").url
        yield SimpleNamespace(url=url, namespace=f"test-{uuid.uuid4().hex[:8]}", kind=request.param)


@contextlib.asynccontextmanager
async def stores(url):
    """A Store and a QueueStore."""
    clock = SystemClock()
    store, queue_store = connect(SecretStr(url), clock), connect_queue(SecretStr(url), clock)
    try:
        yield store, queue_store
    finally:
        await store.aclose()
        await queue_store.aclose()


async def test_scripts_run_once_also_where_they_are_not_known_yet(place):
    async with stores(place.url) as (store, queue_store):
        for number in range(20):
            counted, key = new_script(), f"{place.namespace}:{{{number}}}"
            assert [await store.run(counted, [key], []) for _ in range(2)] == [1, 2]
        counted, key = new_script(), f"{place.namespace}:{{q}}:x"
        together = await asyncio.gather(*(queue_store.run(counted, key, []) for _ in range(100)))
        assert sorted(together) == list(range(1, 101))
        counted, keys = new_script(), [f"{place.namespace}:{{{number}}}:y" for number in range(50)]
        scattered = await asyncio.gather(*(store.run(counted, [key], []) for key in keys for _ in range(3)))
        assert sorted(scattered) == [1] * 50 + [2] * 50 + [3] * 50


async def test_every_script_of_the_queue_runs(place):
    async with queue_on(place.url, place.namespace) as queue:
        assert await queue.wait_and_take("w1", 1) is None  # there is no group yet
        await queue.introduce("w1", {"main": "f"})
        assert await queue.heartbeat("w1")
        waiting = asyncio.create_task(queue.wait_and_take("w1", 1))
        told = asyncio.create_task(queue.wait_for_news("any", 20))
        enqueued = await queue.enqueue(submission("1"))
        (leased,) = await waiting
        await queue.intend(leased, b"{}", "cid", "rkey", did="did:plc:x", generation=0)
        assert (await queue.finish(leased, "at://x", "cid")).ours
        assert (await queue.read(enqueued.view.job.id)).deliveries[0].state == "done"
        for number, end in enumerate(("retry", "fail", "release"), start=2):
            await queue.enqueue(submission(str(number)))
            (leased,) = await queue.wait_and_take("w1", 1)
            match end:
                case "retry":
                    await queue.retry(leased, "x", counts_for_breaker=True)
                case "fail":
                    await queue.fail(leased, "x")
                    await queue.requeue(leased.delivery.job)
                    (leased,) = await queue.wait_and_take("w1", 1)
                    await queue.fail(leased, "x")
                case "release":
                    await queue.release(leased)
        await queue.cancel(leased.delivery.job)
        await queue.close_gate("main", "x", 60)
        await queue.open_gate("main")
        await queue.pause("main", paused=True)
        assert len((await queue.jobs("blog", status=None, group=None, cursor=None, limit=9)).jobs) == 4
        await queue.promote()
        await queue.sweep()
        assert (await queue.reconcile())[1] == []
        await queue.reap()
        await queue.leave("w1")
        told.cancel()


async def test_a_post_is_published_and_logins_pins_and_pace_are_shared(place, world):
    there = World(world.directory, world.pds, world.other, place)
    for number in range(2):
        host = there.host()
        outcome = await publish(host, post_of(number))
        assert outcome.uri.startswith(f"at://{ALICE}/")
        await host.sessions.forgive(host.login(), there.clock.steady() + 20)
    assert world.logins == 1
    await there.close()
    async with stores(place.url) as (_, queue_store):
        rate, clock = Rate(per_s=1000, burst=5), SystemClock()
        pace = SharedPace(queue_store, rate, LocalPace(rate, clock), clock, prefix=there.prefix)
        await until(lambda: _taken(pace))
        await pace.pause("main", 60)
        assert await pace.take("pds.test", "main") > 30


async def _taken(pace):
    return await pace.take("pds.test", "main") == 0


async def test_a_feed_outlives_the_process(place, upstream, monkeypatch):
    monkeypatch.setattr(connection, "TIMEOUT_S", 10.0)  # nothing is lost because the machine is slow
    async with running_proxy(upstream.url, place) as proxy:
        for number in range(10):
            await proxy.get(feed(f"a{number}.test"))
        await proxy.landed()
        assert proxy.web.reading.report(None).store.state == "up"
    async with running_proxy(upstream.url, place) as proxy:
        for number in range(10):
            answer = await proxy.get(feed(f"a{number}.test"))
            assert answer.headers["cache-status"].startswith("feedproxy; hit; ttl=")
    assert upstream.count == 10


async def test_both_stores_listen(place, monkeypatch):
    monkeypatch.setattr(subscription, "IDLE_S", 0.2)
    say = script_of("return redis.call('PUBLISH', ARGV[1], ARGV[2])")
    async with stores(place.url) as both:
        for store in both:
            async with contextlib.aclosing(store.listen(f"{place.namespace}:{{q}}:news")) as news:
                assert await anext(news) is None, "the subscription stands"
                for number in range(3):
                    key = f"{place.namespace}:{{q}}:" if number < 2 else f"{place.namespace}:{{elsewhere}}"
                    await both[0].run(say, [key], [f"{place.namespace}:{{q}}:news", str(number)])
                    heard = [await anext(news)]
                    while heard[-1] is None:
                        heard.append(await anext(news))
                    assert heard[-1] == str(number).encode()
                assert [await anext(news) for _ in range(3)] == [None] * 3, "it goes on after a silence"


async def test_what_a_202_means_is_known(place):
    clock = SystemClock()
    servers = servers_of(SecretStr(place.url), clock, timeout_s=2)
    config = persistence_of(servers, f"{place.namespace}:{{q}}:")
    assert (await config())["appendonly"] == "no"
    assert await Durability(config, clock).now() == MEMORY
    await servers.aclose()


async def test_a_foreign_certificate_is_not_trusted(tmp_path):
    with valkey_server() as inner:
        cert, key = certificate(tmp_path)
        async with (
            tls_before(inner.removeprefix("unix://"), cert, key) as port,
            stores(f"rediss://127.0.0.1:{port}") as (store, _),
        ):
            with pytest.raises(StoreUnavailable):
                await store.run(new_script(), ["x"], [])


async def test_a_wrong_password_is_refused_and_not_told(three_masters):
    url = three_masters.url.replace(ESCAPED, "swordfish")
    async with stores(url) as both:
        for store in both:
            with pytest.raises((StoreUnavailable, StoreRefused)) as caught:
                await store.run(new_script(), "x" if store is both[1] else ["x"], [])
            assert "swordfish" not in repr(caught.value)


async def test_a_node_of_a_cluster_named_as_a_server_is_said_to_be_one(three_masters):
    url = f"redis://:{ESCAPED}@127.0.0.1:{three_masters.other_than(three_masters.owner(three_masters.slot)).port}"
    async with stores(url) as (store, queue_store):
        for run in (store.run(new_script(), ["{q}"], []), queue_store.run(new_script(), "{q}", [])):
            with pytest.raises(StoreRefused, match=r"redis\+cluster://"):
                await run
        assert "redis+cluster://" in store.refusal


@pytest.mark.parametrize("kind", KINDS)
async def test_a_replica_is_read_and_takes_no_jobs(kind):
    read = script_of("return redis.call('GET', KEYS[1])")
    with redis_server(kind, "--replicaof", "127.0.0.1", "1") as server:
        async with stores(server.url) as (store, queue_store):
            assert await store.run(read, ["x"], []) is None
            with pytest.raises(StoreRefused):
                await store.run(new_script(), ["x"], [])
            with pytest.raises(StoreUnavailable, match="ReadOnlyError"):
                await queue_store.run(new_script(), "x", [])
            with pytest.raises(StoreUnavailable, match="ReadOnlyError"):
                await queue_store.wait_for_entries("x", "g", "w", 1)


async def test_a_subscription_to_a_frozen_server_ends(monkeypatch, sentinels):
    monkeypatch.setattr(subscription, "IDLE_S", 0.05)
    port = sentinels.master.port
    async with stores(f"redis://:{ESCAPED}@127.0.0.1:{port}") as (store, _):
        news = store.listen("x")
        assert await anext(news) is None
        with sentinels.nodes[port].frozen(), pytest.raises(StoreUnavailable):
            await until(lambda: _silent(news))


async def _silent(news):
    return await anext(news) is not None


async def test_one_sentinel_is_enough(sentinels):
    frozen, killed, _ = sentinels.sentinels
    with frozen.frozen():
        killed.kill()
        try:
            async with stores(sentinels.url) as (store, queue_store):
                assert await queue_store.run(new_script(), f"{uuid.uuid4()}", []) == 1
                assert await until(lambda: _run(store)) == 1
        finally:
            killed.start()
    sentinels.wait_until_whole()


async def _run(store):
    with contextlib.suppress(StoreUnavailable):
        return await store.run(new_script(), [f"{uuid.uuid4()}"], [])


class LosesAnswers:
    """A unix socket before a server, which swallows the answers to scripts and hangs up."""

    def __init__(self, target, path):
        self.target, self.path = target, path
        self.tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._relay, self.path)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _relay(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        inner_reader, inner_writer = await asyncio.open_unix_connection(self.target)
        try:
            while data := await reader.read(65536):
                inner_writer.write(data)
                answer = await inner_reader.read(65536)
                if b"EVAL" in data and not answer.startswith(b"-NOSCRIPT"):
                    break
                writer.write(answer)
        finally:
            self.tasks.discard(asyncio.current_task())
            writer.close()
            inner_writer.close()


async def test_what_was_not_answered_is_sent_again_by_the_queue_alone(store, tmp_path):
    async with (
        LosesAnswers(store.url.removeprefix("unix://"), str(tmp_path / "s")),
        stores(f"unix://{tmp_path}/s") as (own, queue_store),
        stores(store.url) as (open_store, _),
    ):
        for key, run, times in (("one", own.run, 1), ("many", queue_store.run, 3)):
            counted, name = new_script(), f"{store.namespace}:{key}"
            with pytest.raises(StoreUnavailable):
                await run(counted, [name] if times == 1 else name, [])
            assert await open_store.run(counted, [name], []) == times + 1

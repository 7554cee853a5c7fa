"""Hits answered below ASGI: the same answers as by the ordinary way, and only where that is sure."""

from __future__ import annotations

import contextlib
import re
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings

from harness.clock import FakeClock
from harness.corpus import BROWSER, FEED, NOT_PLAIN, head, mangled
from harness.proxy import feed
from harness.upstream import json_response, xrpc_error
from harness.waiting import until
from harness.wire import Wire
from proxy.web_server import web_server

DATE = re.compile(rb"date: [^\r]+\r\n")


def undated(data):
    return DATE.sub(b"", data)


class Ways:
    """The short way and the ordinary one, through one application and its caches."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.short_cuts = 0  # answered at once
        self.short = web_server(proxy.web.app, proxy.settings, self._short_cut)
        self.ordinary = web_server(proxy.web.app, proxy.settings)

    def _short_cut(self, data, peer, default_headers):
        answer = self.proxy.web.reading.hits.answer(data, peer, default_headers)
        self.short_cuts += isinstance(answer, bytes)
        return answer

    async def both(self, *chunks):
        """What each way answers to `chunks`."""
        return [(await self._alone(server, chunks))[0] for server in (self.short, self.ordinary)]

    async def same(self, *chunks):
        """The answer of both ways, which is one, and so is whether they end the connection."""
        short, ordinary = [await self._alone(server, chunks) for server in (self.short, self.ordinary)]
        assert short == ordinary
        return short[0]

    async def _alone(self, server, chunks):
        wire = Wire(server)
        return undated(await wire.send(*chunks)), wire.is_closing()

    async def taken(self, *chunks):
        """How many requests in `chunks` took the short way."""
        before = self.short_cuts
        await self.same(*chunks)
        return self.short_cuts - before


@pytest.fixture
async def ways(start, upstream):
    """Both ways with one feed, one profile and one error in memory, each known as a hit."""
    big = {"feed": [{"post": {"text": "text " * 40, "n": n}} for n in range(40)]}
    upstream.answer = lambda request: (
        xrpc_error(400, "InvalidRequest", "Profile not found")
        if "nobody" in request.target
        else json_response(big)
    )
    async with start(clock=FakeClock(), CACHE_TTL=600, NEGATIVE_TTL=600) as proxy:
        ways = Ways(proxy)
        for target in (
            FEED,
            feed("nobody.test"),
            "/xrpc/app.bsky.feed.getFeed?feed=at://a.test/app.bsky.feed.generator/x",
        ):
            for _ in range(2):
                await proxy.get(target)
        yield ways


async def test_a_plain_hit_takes_the_short_way(ways):
    assert await ways.taken(head(*BROWSER)) == 1
    assert await ways.taken(head("Host: proxy.test", target=feed("nobody.test"))) == 1


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "br",
        "gzip",
        "zstd;q=0.5, gzip",
        "identity",
        "*",
        "br;q=0",
        "gzip;q=0.1, *;q=0",
        "snappy",
        "a, b;;",
    ],
)
async def test_codings(ways, accept):
    assert await ways.taken(head("Host: proxy.test", f"Accept-Encoding: {accept}")) == 1
    assert (
        await ways.taken(head("Host: proxy.test", "accept-encoding:gzip", f"ACCEPT-ENCODING:  {accept} "))
        == 1
    )


async def test_wishes_that_make_no_difference_share_an_answer(ways):
    for number in range(100):
        wish = f"zstd;q=0.5, gzip;q=0.{number:03}, x-{number}-{'x' * 3000}"
        fields = (f"Accept-Encoding: {wish}", f"Origin: https://{number}.example", "Cookie: a=b")
        assert await ways.taken(head("Host: p", *fields)) == 1
    assert 0 < ways.proxy.web.reading.hits.remembered[1] <= 3


@pytest.mark.parametrize("blank", ["", " ", "\t \t"])
@pytest.mark.parametrize(
    "origin", ["https://blog.example", "HTTPS://Blog.example", "https://b.example", "null"]
)
async def test_listed_origins(start, upstream, origin, blank):
    upstream.answer = lambda _request: json_response({"feed": []})
    async with start(clock=FakeClock(), CORS_ORIGINS="https://blog.example") as proxy:
        ways = Ways(proxy)
        for _ in range(2):
            await proxy.get(FEED)
        assert await ways.taken(head("Host: p", f"Origin:{blank}{origin}{blank}")) == 1
        allowed = b"access-control-allow-origin: " + origin.encode() + b"\r\n"
        answer = await ways.same(head("Host: p", f"Origin:{blank}{origin}{blank}"))
        assert (allowed in answer) == (origin.lower() == "https://blog.example")


async def test_who_is_no_longer_served_is_seen(start, upstream):
    """The account listed by its handle has moved to another DID; readers go on to ask for the old one."""
    did = {"is": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"}
    upstream.answer = lambda request: json_response(
        {"did": did["is"]} if "resolveHandle" in request.target else {"feed": []}
    )
    async with start(clock=FakeClock(), CACHE_TTL=60, ACTORS="alice.test") as proxy:
        ways, target = Ways(proxy), feed(did["is"])
        await proxy.get(target)
        answer = await ways.same(head("Host: p", target=target))
        assert answer.startswith(b"HTTP/1.1 200 ")
        did["is"] = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
        for _ in range(6):
            await proxy.pass_time(40)
            await ways.both(head("Host: p", target=target))
        answer = await ways.same(head("Host: p", target=target))
        assert answer.startswith(b"HTTP/1.1 403 ")


async def test_age_and_ttl_go_on(ways):
    """Age is true to the second; what else counts seconds may lag behind by the one that is passing."""
    seen = set()
    for _ in range(12):
        ways.proxy.clock.advance(0.7)
        short, ordinary = await ways.both(head(*BROWSER))
        (age, ttl, at), (true_age, true_ttl, true_at) = told(short), told(ordinary)
        assert age == true_age
        assert 0 <= ttl - true_ttl <= 1
        assert 0 <= true_at - at <= 1
        assert len(short) == len(ordinary)
        seen.add(age)
    assert ways.short_cuts == 12
    assert seen == set(range(9))


def told(answer):
    """Age, ttl and second of the last confirmation, as an answer tells them."""
    return (
        int(re.search(rb"\r\nage: (\d+)", answer)[1]),
        int(re.search(rb"ttl=(\d+)", answer)[1]),
        int(re.search(rb"feed-updated-at: [^\r]+:(\d\d)Z", answer)[1]),
    )


async def test_stale_answers_are_served_and_refreshed_once(ways, upstream):
    asked = upstream.count
    ways.proxy.clock.advance(1000)
    wire = Wire(ways.short)
    for _ in range(5):  # without a turn of the loop: no refresh can have come
        wire.protocol.data_received(head(*BROWSER))
    assert ways.short_cuts == 5
    assert bytes(wire.sent).count(b"detail=stale-while-revalidate") == 5
    await ways.proxy.landed()
    assert upstream.count == asked + 1
    assert await ways.taken(head(*BROWSER)) == 1
    assert b"age: 0" in await ways.same(head(*BROWSER))


async def test_a_refresh_that_failed_is_told_a_second_later(ways, upstream):
    upstream.answer = lambda _request: xrpc_error(503, "Unavailable")
    ways.proxy.clock.advance(1000)
    await ways.same(head(*BROWSER))
    await ways.proxy.landed()
    ways.proxy.clock.advance(1)
    assert await ways.taken(head(*BROWSER)) == 1
    assert b"detail=stale-if-error; fwd-status=503" in await ways.same(head(*BROWSER))


async def test_what_is_too_old_goes_the_ordinary_way(ways):
    ways.proxy.clock.advance(700)
    await Wire(ways.short).send(head("Host: p", target=feed("nobody.test")))
    ways.proxy.clock.advance(90_000)
    await Wire(ways.short).send(head(*BROWSER))
    assert ways.short_cuts == 0


async def test_what_was_replaced_is_not_served(ways, upstream):
    await ways.same(head(*BROWSER))
    upstream.answer = lambda _request: json_response({"feed": [], "new": True})
    ways.proxy.clock.advance(1000)
    await ways.same(head("Host: proxy.test"))
    await ways.proxy.landed()
    answer = await ways.same(head("Host: proxy.test"))
    assert answer.endswith(b'{"feed": [], "new": true}')


async def test_what_is_forgotten_is_not_served(ways):
    ways.proxy.web.reading.caches.memory.discard_all(lambda _: True)
    assert await ways.taken(head(*BROWSER)) == 0


@pytest.mark.parametrize("data", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
async def test_what_is_not_plain_takes_the_ordinary_way(ways, data):
    for _ in range(2):  # some are questions of their own
        await Wire(ways.ordinary).send(data)
    assert await ways.taken(data) == 0
    # What follows on the same connection is understood in the same way as well.
    await ways.same(data, head(*BROWSER))
    await ways.same(head(*BROWSER), data, head(*BROWSER))


async def test_after_an_upgrade_nothing_is_taken_for_plain(ways):
    upgrade = head(*BROWSER, "Connection: Upgrade", "Upgrade: websocket")
    assert await ways.taken(upgrade, head(*BROWSER)) == 0


@pytest.mark.parametrize(
    "data", [head(*BROWSER), head("Host: p", "Content-Length: 3") + b"abc" + head("Host: p")]
)
async def test_split_anywhere(ways, data):
    for at in range(1, len(data)):
        await ways.same(data[:at], data[at:], head(*BROWSER))


async def test_byte_by_byte(ways):
    data = head(*BROWSER)
    assert await ways.taken(*(data[at : at + 1] for at in range(len(data))), data) == 1


async def test_many_on_one_connection(ways):
    assert await ways.taken(*[head(*BROWSER), head("Host: p", method="HEAD")] * 20) == 20


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=mangled())
async def test_mangled_requests(ways, chunks):
    await Wire(ways.ordinary).send(*chunks)  # what is a question of its own is a hit from now on
    await ways.same(*chunks, head(*BROWSER))


async def test_a_peer_that_never_reads_is_not_written_to_for_ever(ways):
    wire = Wire(ways.short, reads=False)
    for _ in range(5000):
        wire.protocol.data_received(head(*BROWSER))
    assert ways.short_cuts > 0
    assert len(wire.sent) < 2 * Wire.HIGH_WATER_BYTES
    wire.end()
    wire.paused = False
    await wire.quiet()


async def test_while_an_answer_is_owed_nobody_overtakes(ways, upstream):
    upstream.delay_s = 0.05
    wire = Wire(ways.short)
    wire.protocol.data_received(head("Host: p", target=feed("slow.test")))
    wire.protocol.data_received(head("Host: p"))
    await wire.quiet()
    first, second = [part for part in bytes(wire.sent).split(b"HTTP/1.1 ") if part]
    assert b"fwd=uri-miss" in first
    assert b"hit" in second


async def test_what_is_remembered_of_strangers_is_bounded(start, upstream):
    """By the memory for answers, an eighth of which is for this; what does not fit goes, and comes back."""
    upstream.answer = lambda _request: json_response({"feed": [{"text": "x" * 2000}]})
    async with start(clock=FakeClock(), CACHE_TTL=600, MEMORY_MB=1) as proxy:
        ways, hits = Ways(proxy), proxy.web.reading.hits
        await proxy.get(FEED)
        largest = forgot = 0
        for n in range(400):
            before = hits.remembered[0]
            assert await ways.taken(head("Host: p", f"X-Client: {n} {'x' * 1000}")) == 1
            forgot += hits.remembered[0] < before
            largest = max(largest, hits.size_bytes)
        assert forgot >= 2
        assert 100_000 < largest <= 2**20 // 8


@pytest.mark.parametrize("posts", [1, 25])
async def test_questions_take_up_about_as_much_as_is_counted(start, posts):
    """However long they are: answered or not, they are what a stranger can send most of."""

    def asked(number):
        uris = (f"uris=at://did:plc:{number:024}/app.bsky.feed.post/{'x' * 60}{n}" for n in range(posts))
        return head("Host: p", target=f"/xrpc/app.bsky.feed.getPosts?{'&'.join(uris)}")

    async with start() as proxy:
        hits = proxy.web.reading.hits
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0], hits.size_bytes
        for number in range(200):
            assert hits.answer(asked(number), "127.0.0.1", []) is not None
        taken = tracemalloc.get_traced_memory()[0] - before[0]
        tracemalloc.stop()
        assert taken < 1.3 * (hits.size_bytes - before[1])


async def test_an_answer_too_large_to_be_kept_ready_is_sent(start, upstream):
    upstream.answer = lambda _request: json_response({"feed": [{"text": "x" * 100_000}]})
    async with start(clock=FakeClock(), MEMORY_MB=1) as proxy:
        ways, hits = Ways(proxy), proxy.web.reading.hits
        await proxy.get(FEED)
        for _ in range(3):
            assert await ways.taken(head("Host: p", "Accept-Encoding: identity")) == 1
        assert hits.remembered == (0, 0)


async def test_secrets_of_clients_are_not_remembered(ways):
    hits = ways.proxy.web.reading.hits
    await ways.same(head("Host: p"))
    before = hits.remembered, hits.size_bytes
    for name in ("Cookie", "Authorization", "proxy-authorization"):
        for _ in range(2):
            assert await ways.taken(head("Host: p", f"{name}: secret")) == 1
    assert (hits.remembered, hits.size_bytes) == before


async def test_an_idle_connection_is_closed(ways):
    wire = Wire(ways.short)
    wire.protocol.timeout_keep_alive = 0.05
    await wire.send(head(*BROWSER), head(*BROWSER))
    assert ways.short_cuts == 2
    await until(wire.is_closing)


async def test_requests_are_counted(ways):
    before = ways.short.server_state.total_requests
    await ways.taken(head(*BROWSER))
    assert ways.short.server_state.total_requests == before + 1


async def test_an_access_log_sees_every_request(ways, caplog):
    logged = ways.proxy.settings.model_copy(update={"access_log": True})
    server = web_server(ways.proxy.web.app, logged, ways.short.config.short_cut)
    with contextlib.closing(Wire(server)) as wire:
        await wire.send(head(*BROWSER))
    assert ways.short_cuts == 0

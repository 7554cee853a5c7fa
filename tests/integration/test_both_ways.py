"""The short way of hits and the ordinary one cannot be told apart, whatever clients send and when."""

from __future__ import annotations

import functools
import itertools

import pytest
import pytest_asyncio

from harness.corpus import FEED, NOT_PLAIN, captured, head
from harness.proxy import feed
from harness.upstream import Response, xrpc_error
from harness.ways import both_ways

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What no head may have that takes the short way.
UNUSUAL = {b"connection", b"content-length", b"upgrade", b"atproto-accept-labelers", b"if-none-match"}
CAPTURED = captured()
TTL_S = 600
NUMBERS = itertools.count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ways(valkey_url):
    """Both, of which each knows FEED."""
    settings = {
        "CACHE_TTL": TTL_S,
        "NEGATIVE_TTL": TTL_S,
        "STALE_WHILE_REVALIDATE": TTL_S,
        "STALE_IF_ERROR": 5 * TTL_S,
        "BREAKER_THRESHOLD": 1_000_000,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy.feeds.service.OLD_PATIENCE_S", 20.0)  # nothing here comes of slowness
        async with both_ways(valkey_url, **settings) as ways:
            await ways.say(PLAIN, PLAIN)
            yield ways


def plain(target=FEED):
    return head("Host: p", target=target)


PLAIN = plain()


@pytest.mark.parametrize("data", CAPTURED.values(), ids=CAPTURED.keys())
async def test_heads_of_real_clients(ways, data):
    line, *fields = data.split(b"\r\n")[:-2]
    names = {field.partition(b":")[0].lower() for field in fields}
    usual = line.startswith(b"GET ") and UNUSUAL.isdisjoint(names)
    await ways.say(data)  # which may be a question of its own
    await ways.say(data)
    assert await ways.taken(data, data) == (2 if usual else 0)
    assert (await ways.say(data)).statuses[0] in (200, 204, 304)


@pytest.mark.parametrize("data", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
async def test_what_is_not_plain(ways, data):
    for _ in range(2):
        await ways.say(data)
    assert await ways.taken(data) == 0
    await ways.say(PLAIN, data, PLAIN)
    await ways.say(PLAIN + data + PLAIN, PLAIN)


# What a client may send before a question of its own has been answered.
AFTERWARDS = {
    "nothing": [],
    "the same": [b"{same}"],
    "a hit": [PLAIN],
    "HEAD": [b"{head}"],
    "another question": [b"{other}"],
    "a condition": [head("Host: p", 'If-None-Match: "x"')],
    "the last request, and one more": [head("Host: p", "Connection: close"), PLAIN],
    "garbage": [b"GARBAGE\r\n\r\n"],
    "the begin of a TLS session": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
    "line ends": [b"\r\n", b"\r\n", PLAIN],
    "half a head": [PLAIN[:40]],
    "a head in two parts": [PLAIN[:40], PLAIN[40:]],
    "a body that is a request": [
        head("Host: p", f"Content-Length: {len(PLAIN)}", method="POST") + PLAIN,
        PLAIN,
    ],
    "chunks that are requests": [
        head("Host: p", "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(PLAIN), PLAIN),
        PLAIN,
    ],
    "half a body": [head("Host: p", "Content-Length: 4", method="POST") + b"ab"],
    "HTTP/1.0": [head("Host: p", version="HTTP/1.0"), PLAIN],
    "two hosts": [head("Host: p", "Host: q"), PLAIN],
    "an upgrade": [head("Host: p", "Connection: Upgrade", "Upgrade: websocket"), PLAIN],
    "a head too long": [head("Host: p", f"X: {'x' * 20_000}"), PLAIN],
    "many hits": [PLAIN] * 20,
    "many of all": [b"{same}", PLAIN, b"{head}", b"{other}"] * 5,
}


def afterwards(name, target):
    """What is sent then, as so many reads."""
    known = {b"{same}": plain(target), b"{head}": head("Host: p", target=target, method="HEAD")}
    known[b"{other}"] = plain(f"{target}&limit=1")
    return [known.get(chunk, chunk) for chunk in AFTERWARDS[name]]


# How old what is held for a question is when it is asked again: it has never been asked, is served unless it
# can be refreshed, is not served at all.
BEFORE_S = {"new": 0, "old": 3 * TTL_S, "expired": 10 * TTL_S}


async def prepared(way, targets, age_s):
    """Each of `targets` has been a hit, so long ago; FEED is one now."""
    way.upstream.answer = way.upstream.feed
    if age_s:
        for target in targets:
            await way.exchange(plain(target), plain(target))
        await way.proxy.pass_time(age_s)
    await way.exchange(PLAIN, PLAIN)


OUTCOMES = {
    "an answer": {},
    "an answer for one": {"headers": {"Cache-Control": "no-store"}},
    "an error": {"response": xrpc_error(400, "InvalidRequest", "Profile not found")},
    "a failure": {"response": xrpc_error(500, "InternalServerError")},
    "an end": {"response": Response(close=True)},
}


def answering(way, *, response=None, headers=None):
    """Have the upstream answer so."""

    def answer(request):
        given = response or way.upstream.feed(request)
        given.headers.update(headers or {})
        return given

    way.upstream.answer = answer


async def while_asked(way, outcome, target, chunks):
    """What three clients hear: one asks, another as well and sends more, and one just asks like the first."""
    answering(way, **outcome)
    asked = way.upstream.count
    peers = early, late, last = [await way.connect() for _ in range(3)]
    with way.holding():
        await early.send(plain(target))
        await way.asked_upstream(asked + 1)
        await late.send(*chunks)
        await last.send(plain(target))
    await way.settled()
    await late.send(PLAIN)
    await way.settled()
    heard = [peer.heard for peer in peers]
    for peer in peers:
        await peer.leave()
    return heard


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
@pytest.mark.parametrize("before_s", BEFORE_S.values(), ids=BEFORE_S.keys())
async def test_what_follows_a_question_that_is_under_way(ways, before_s, outcome):
    cases = [
        (name, at_once, feed(f"a{next(NUMBERS)}.test"))
        for name, at_once in itertools.product(AFTERWARDS, [False, True])
    ]
    await ways.same(lambda way: prepared(way, [target for *_, target in cases], before_s))
    for name, at_once, target in cases:
        chunks = [plain(target), *afterwards(name, target)]
        chunks = [b"".join(chunks)] if at_once else chunks
        script = functools.partial(while_asked, outcome=outcome, target=target, chunks=chunks)
        early, late, last = await ways.same(script)
        assert len(early.statuses) == len(last.statuses) == 1, name
        assert early.statuses == last.statuses == late.statuses[:1], name

"""Both ways of hits cannot be told apart by what clients send while the upstream is being asked either."""

from __future__ import annotations

import asyncio
import functools
import itertools

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings

from harness.corpus import FEED, NOT_PLAIN, captured, head, mangled, plain
from harness.proxy import feed
from harness.upstream import Response, xrpc_error
from harness.waiting import until
from harness.ways import both_ways, one_way, told_to, turns

pytestmark = pytest.mark.asyncio(loop_scope="module")

TTL_S = 600
NUMBERS = itertools.count()
PLAIN = plain()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ways(valkey_url):
    """Both, of which each knows FEED."""
    own = {
        "CACHE_TTL": TTL_S,
        "NEGATIVE_TTL": TTL_S,
        "STALE_WHILE_REVALIDATE": TTL_S,
        "STALE_IF_ERROR": 5 * TTL_S,
        "BREAKER_THRESHOLD": 1_000_000,
        "UPSTREAM_CONCURRENCY": 100,  # as many are asked at a time as here are
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy.feeds.service.OLD_PATIENCE_S", 20.0)  # nothing here comes of slowness
        async with both_ways(valkey_url, **own) as ways:
            await ways.say(PLAIN, PLAIN)
            yield ways


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(valkey_url):
    """Start both with settings of the test's own: `async with fresh(CACHE_TTL=1) as ways`."""
    return functools.partial(both_ways, valkey_url)


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


async def alike(ways, script, name=None):
    """What `script` returns on both, whatever it has them ask and tell."""
    short, ordinary = [await script(way) for way in (ways.short, ways.ordinary)]
    assert short == ordinary, name
    for way in (ways.short, ways.ordinary):
        await way.told()  # this was no part of it
    return short


async def asked_by(way, target, *, fields=("Host: p",)):
    """A client whose question the upstream has got."""
    asked = way.upstream.count
    peer = await way.connect()
    await peer.send(head(*fields, target=target))
    await way.asked_upstream(asked + 1)
    return peer


async def three(way, outcome, chunks_by_target):
    """What three clients hear for each target.

    One asks, another sends the chunks meanwhile and a hit afterwards, and one asks like the first.
    """
    answering(way, **outcome)
    peers = []
    with way.holding():
        for target, chunks in chunks_by_target.items():
            early, late, last = await asked_by(way, target), await way.connect(), await way.connect()
            await late.send(*chunks)
            await last.send(plain(target))
            peers.append((early, late, last))
    await way.settled()
    for _, late, _ in peers:
        await late.send(PLAIN)
    await way.settled()
    return [await told_to(*each) for each in peers]


@pytest.mark.parametrize(
    ("outcome", "in_one_read"), [("an answer", True), *((name, False) for name in OUTCOMES)]
)
@pytest.mark.parametrize("before_s", BEFORE_S.values(), ids=BEFORE_S.keys())
async def test_what_follows_a_question_that_is_under_way(ways, before_s, outcome, in_one_read):
    cases = {}
    for name in AFTERWARDS:
        target = feed(f"a{next(NUMBERS)}.test")
        chunks = [plain(target), *afterwards(name, target)]
        cases[target] = [b"".join(chunks)] if in_one_read else chunks
    await ways.same(lambda way: prepared(way, cases, before_s))
    heard = await ways.same(lambda way: three(way, OUTCOMES[outcome], cases))
    for name, (early, late, last) in zip(AFTERWARDS, heard, strict=True):
        assert len(early.statuses) == len(last.statuses) == 1, name
        assert early.statuses == last.statuses == late.statuses[:1], name


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=mangled())
async def test_mangled_questions_under_way(ways, chunks):
    target = feed(f"a{next(NUMBERS)}.test")
    chunks = [chunk.replace(FEED.encode(), target.encode()) for chunk in chunks]
    await ways.same(lambda way: three(way, {}, {target: chunks}))


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
async def test_a_crowd_of_all_kinds(ways, outcome):
    """More than are woken at a time, with heads of all clients there are, and such as no client has."""
    target = feed(f"a{next(NUMBERS)}.test")
    heads = [*captured().values(), *NOT_PLAIN.values(), *[plain()] * 300]
    asked = [data.replace(FEED.encode(), target.encode()) for data in heads]

    async def script(way):
        await prepared(way, [], 0)
        answering(way, **outcome)
        with way.holding():
            early = await asked_by(way, target)
            peers = [await way.connect() for _ in asked]
            for peer, data in zip(peers, asked, strict=True):
                await peer.send(data)
        await way.settled()
        for peer in peers:
            await peer.send(PLAIN)
        await way.settled()
        return await told_to(early, *peers)

    heard = await alike(ways, script)
    assert all(len(one.statuses) == 2 for one in heard[-300:])


@pytest.mark.parametrize("before_s", BEFORE_S.values(), ids=BEFORE_S.keys())
async def test_cut_anywhere(ways, before_s):
    """One question, asked by as many as there are places to cut what they send."""
    target = feed(f"a{next(NUMBERS)}.test")
    data = plain(target) + head("Host: p", target=target, method="HEAD") + plain(target)

    async def script(way):
        await prepared(way, [target], before_s)
        with way.holding():
            early = await asked_by(way, target)
            peers = [await way.connect() for _ in data]
            for at, peer in enumerate(peers):
                await peer.send(*filter(None, (data[:at], data[at:])))
            byte_by_byte = await way.connect()
            await byte_by_byte.send(*(bytes((byte,)) for byte in data))
        await way.settled()
        return await told_to(early, *peers, byte_by_byte)

    early, *others = await ways.same(script)
    assert early.statuses == [200]
    assert {tuple(heard.statuses) for heard in others} == {(200, 200, 200)}


@pytest.mark.parametrize("end", ["end_sending", "leave"])
@pytest.mark.parametrize("before_s", BEFORE_S.values(), ids=BEFORE_S.keys())
async def test_who_ends_anywhere(ways, before_s, end):
    """Having sent so many bytes. Whoever stays is answered."""
    target = feed(f"a{next(NUMBERS)}.test")
    data = plain(target) + plain(target)

    async def script(way):
        await prepared(way, [target], before_s)
        with way.holding():
            first = await asked_by(way, target)
            last = await way.connect()
            peers = [await way.connect() for _ in data]
            for number, peer in enumerate(peers):
                await peer.send(data[:number])
                await getattr(peer, end)()
            await last.send(data)
            await getattr(first, end)()
        await way.settled()
        return await told_to(first, *peers, last)

    *others, last = await ways.same(script)
    assert last.statuses == [200, 200]
    assert {(heard.data, heard.ended) for heard in others} == {(b"", True)}


async def test_a_purge_meanwhile(ways):
    """Whoever asks after it is not given what was asked for before it."""
    for name in AFTERWARDS:
        target = feed(f"a{next(NUMBERS)}.test")
        chunks = [plain(target), *afterwards(name, target)]

        async def script(way, target=target, chunks=chunks):
            await prepared(way, [], 0)
            way.upstream.version = 1
            with way.holding() as first:
                early, late = await asked_by(way, target), await way.connect()
                await late.send(*chunks)
                await way.purge(target)
                way.upstream.version = 2
                with way.holding():
                    last = await asked_by(way, target)
                    first.set()
                    await until(lambda: early.heard.data and late.heard.data)
                    await turns()
            await way.settled()
            await late.send(plain(target))
            await way.settled()
            return await told_to(early, late, last)

        *_, last = await alike(ways, script, name)
        assert b'"version": 2' in last.data


async def test_whose_share_is_spent(fresh):
    """Who has joined a question that its asker had no leave to ask has it asked anew."""
    first, second = feed("alice.test"), feed("bob.test")

    async def script(way):
        spender, other = await way.connect(), await way.connect()
        await spender.send(head("Host: p", "X-Forwarded-For: 203.0.113.1", target=first))
        await way.settled()
        spender.write(head("Host: p", "X-Forwarded-For: 203.0.113.1", target=second))
        other.write(head("Host: p", "X-Forwarded-For: 203.0.113.2", target=second))
        await way.settled()
        return await told_to(spender, other)

    async with fresh(CLIENT_MISSES_PER_MIN=1) as ways:
        spender, other = await ways.same(script)
    assert (spender.statuses, other.statuses) == ([200, 429], [200])


@pytest.mark.parametrize("given_up", [False, True], ids=["an answer", "no time for it"])
async def test_stopping_meanwhile(valkey_url, monkeypatch, given_up):
    """What is under way is answered, and so is what idle connections bring at the last moment."""
    monkeypatch.setattr("proxy.edge.LINGER_S", 20.0)  # nothing here comes of slowness
    target = feed("alice.test")

    async def clients(way, peers, stopping):
        with way.holding():
            peers.append(await asked_by(way, target))
            for name in AFTERWARDS:
                peers.append(await way.connect())
                await peers[-1].send(plain(target), *afterwards(name, target))
            stopping.set()
            await until(lambda: way.has_stopped_listening)
            for peer in peers:
                await peer.send(PLAIN[40:] if peer is peers[2] else PLAIN)
            if given_up:
                way.proxy.web.give_up()
                await until(lambda: all(peer.heard.ended for peer in peers))

    async def script(*, short):
        async with one_way(valkey_url, short=short) as way:
            await way.exchange(PLAIN, PLAIN)
            peers = [await way.connect() for _ in range(3)]
            await peers[1].send(PLAIN)
            await peers[2].send(PLAIN[:40])
            stopping = asyncio.Event()
            asking = asyncio.create_task(clients(way, peers, stopping))
            await stopping.wait()
        await asking
        return await told_to(*peers)

    heard = await script(short=True)
    assert heard == await script(short=False)
    assert all(one.ended for one in heard)
    assert [one.statuses for one in heard[:4]] == [[200], [200, 200], [200], [504 if given_up else 200]]


async def test_who_waits_for_us_is_not_called_idle(fresh, monkeypatch):
    """Nor slow; and is, once answered."""
    monkeypatch.setattr("proxy.edge.HEAD_S", 0.5)
    monkeypatch.setattr("proxy.web_server.KEEP_ALIVE_S", 0.5)
    target = feed("alice.test")

    async def script(way):
        await way.exchange(plain(target), plain(target))
        await way.proxy.pass_time(10 * TTL_S)
        await way.exchange(PLAIN)
        with way.holding():
            waiting = [await asked_by(way, target), *[await way.connect() for _ in range(3)]]
            await waiting[1].send(plain(target))
            await waiting[2].send(plain(target), PLAIN)
            await waiting[3].send(PLAIN, plain(target))
            idle = await way.connect()
            await idle.send(PLAIN)
            await until(lambda: idle.heard.ended)
            assert not any(peer.heard.ended for peer in waiting)
        await until(lambda: all(peer.heard.ended for peer in waiting))
        return await told_to(*waiting)

    async with fresh(CACHE_TTL=TTL_S, STALE_WHILE_REVALIDATE=1, STALE_IF_ERROR=1) as ways:
        heard = await ways.same(script)
    assert [one.statuses for one in heard] == [[200], [200], [200, 200], [200, 200]]

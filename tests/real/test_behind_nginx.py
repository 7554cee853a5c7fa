"""Debian's nginx, which keeps its connections to us open, before both ways of answering hits.

What one client sends must be nobody else's request, and nobody gets the answer to another's, whatever the
first one tries; nor can the two ways be told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import re
import tempfile
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from real.edges import nginx

from harness.corpus import BROWSER, NOT_PLAIN, captured, head, mangled
from harness.proxy import feed
from harness.waiting import until
from harness.ways import Peer, both_ways

# nginx gives up early on what a request lacks; whatever is whole is there long before.
IMPATIENT = "client_header_timeout 3s; client_body_timeout 3s; lingering_timeout 1s;"
HIT = head(*BROWSER)
LAST = head("Host: feeds.example", "Connection: close", target="/livez")
SMUGGLED = head("Host: feeds.example", target=feed("smuggled.test"))
CACHE_STATUS = re.compile(rb"\r\ncache-status: [^\r]+")
VICTIMS = 4
MOST_BYTES = 100_000  # on one connection, far from as many requests as nginx allows there


class Behind:
    """A way as clients of nginx see it."""

    def __init__(self, way, edge):
        self.way = way
        self._edge = edge

    async def connect(self):
        _, peer = await asyncio.get_running_loop().create_connection(
            Peer, "127.0.0.1", self._edge.port, ssl=self._edge.tls, server_hostname="feeds.example"
        )
        return peer

    async def hear(self, *chunks):
        """What a client hears that sends `chunks`, and a last request."""
        peer = await self.connect()
        for chunk in (*chunks, LAST):
            if not peer.heard.ended:
                await peer.send(chunk)
        await until(lambda: peer.heard.ended)
        await self.way.settled()
        return peer.heard


class Both:
    """Both ways behind an nginx each, and the loop they run on, which is that of production."""

    def __init__(self, runner, short, ordinary):
        self.runner = runner
        self.short = short
        self.ordinary = ordinary

    def same(self, script):
        """What `script` returns, which it does on both alike."""

        async def both():
            told = []
            for behind in (self.short, self.ordinary):
                heard = await script(behind)
                asked, counted = await behind.way.told()
                counted.pop("feedproxy_connections", None)  # those of nginx, which come and go
                told.append((heard, asked, counted))
            return told

        short, ordinary = self.runner.run(both())
        assert short == ordinary
        return short[0]

    def say(self, *chunks):
        return self.same(lambda behind: behind.hear(*chunks))

    def taken(self, *chunks):
        """How many of the requests in `chunks` took the short way."""
        before = self._saved
        self.say(*chunks)
        return self._saved - before

    def smuggled(self):
        """What was asked that was in a body."""
        requests = self.short.way.upstream.requests + self.ordinary.way.upstream.requests
        return [request.target for request in requests if "smuggled" in request.target]

    @property
    def _saved(self):
        return self.ordinary.way.app.asked - self.short.way.app.asked


@contextlib.contextmanager
def open_on(runner, manager):
    """What `manager` yields, for as long as the block lasts. A task of its own enters and leaves it."""
    entered, over = runner.get_loop().create_future(), asyncio.Event()

    async def stay():
        async with manager as value:
            entered.set_result(value)
            await over.wait()

    async def first(task):
        await asyncio.wait({task, entered}, return_when=asyncio.FIRST_COMPLETED)
        return entered.result() if entered.done() else await task

    task = runner.get_loop().create_task(stay())
    try:
        yield runner.run(first(task))
    finally:
        over.set()
        runner.run(asyncio.wait_for(task, None))


@pytest.fixture(scope="module")
def both(valkey_url):
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        ways = stack.enter_context(open_on(runner, both_ways(valkey_url, tcp=True)))

        def behind(way):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fp-")))
            port = way.address[1]
            return Behind(way, stack.enter_context(nginx(directory, port, port, IMPATIENT)))

        both = Both(runner, behind(ways.short), behind(ways.ordinary))
        both.say(HIT, HIT)
        yield both


def test_hits_take_the_short_way_over_connections_that_are_kept(both):
    assert both.taken(HIT, HIT, HIT * 5) == 7
    metrics = both.runner.run(both.short.way.proxy.get("/metrics")).text
    assert re.search(r"^feedproxy_connections [1-9]", metrics, re.MULTILINE), "nginx's, of whom nobody asks"


CAPTURED = captured()


@pytest.mark.parametrize("data", CAPTURED.values(), ids=CAPTURED.keys())
def test_heads_of_real_clients(both, data):
    for _ in range(2):
        both.say(data)
    both.say(HIT, data, HIT + data + HIT)


@pytest.mark.parametrize("data", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
def test_what_is_not_plain(both, data):
    for _ in range(2):
        both.say(data)
    both.say(HIT, data, HIT + data + HIT)


def test_conditions_and_heads(both):
    etag = re.search(rb"etag: (\S+)", both.say(HIT).data)[1].decode()
    asked = [
        HIT,
        head(*BROWSER, f"If-None-Match: {etag}"),
        head(*BROWSER, method="HEAD"),
        head(*BROWSER, f'If-None-Match: "x", {etag}'),
        head(*BROWSER, f"If-None-Match: {etag}", method="HEAD"),
        head(*BROWSER, 'If-None-Match: "x"'),
    ]
    heard = both.say(b"".join(asked))
    assert heard.statuses == [200, 304, 200, 304, 304, 200, 200]
    assert both.say(*asked) == heard


def test_cut_anywhere(both):
    data = head("Host: feeds.example") + head("Host: feeds.example", method="HEAD")

    async def script(behind):
        return [await behind.hear(data[:at], data[at:]) for at in range(1, len(data))]

    assert {tuple(heard.statuses) for heard in both.same(script)} == {(200, 200, 200)}


BODIES = {
    "a length": head(*BROWSER, f"Content-Length: {len(SMUGGLED)}", method="POST") + SMUGGLED,
    "a length, of a GET": head(*BROWSER, f"Content-Length: {len(SMUGGLED)}") + SMUGGLED,
    "a length, of a HEAD": head(*BROWSER, f"Content-Length: {len(SMUGGLED)}", method="HEAD") + SMUGGLED,
    "chunks": head(*BROWSER, "Transfer-Encoding: chunked")
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    "an expectation": head(*BROWSER, f"Content-Length: {len(SMUGGLED)}", "Expect: 100-continue") + SMUGGLED,
    "an upgrade": head(
        *BROWSER, f"Content-Length: {len(SMUGGLED)}", "Connection: Upgrade", "Upgrade: websocket"
    )
    + SMUGGLED,
    "a length of nothing": head(*BROWSER, "Content-Length: 0"),
}


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_requests(both, data):
    heard = both.say(HIT, data, data + HIT, HIT)
    assert b"smuggled" not in heard.data
    assert both.smuggled() == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=mangled())
def test_mangled_requests(both, chunks):
    both.say(*chunks)
    both.say(*chunks, HIT)


def test_a_crowd_some_of_which_leave(both):
    """All ask for the same that nobody has asked for yet; who stays is answered, whoever leaves."""
    target = feed("crowd.test")
    question, more = head(*BROWSER, target=target), head(*BROWSER, target=target, method="HEAD")

    async def script(behind):
        before = behind.way.upstream.count
        with behind.way.holding():
            peers = [await behind.connect() for _ in range(40)]
            for number, peer in enumerate(peers):
                await peer.send(question, *[more + question + LAST] * (number % 3))
            await behind.way.asked_upstream(before + 1)
            for peer in peers[::4]:
                await peer.leave()
        stayed = [peer for number, peer in enumerate(peers) if number % 4]
        for peer in stayed:
            await peer.send(LAST)
        await until(lambda: all(peer.heard.ended for peer in stayed))
        # Who came in time for the answer that all waited for is not for the test to say.
        return [CACHE_STATUS.sub(b"", peer.heard.data) for peer in stayed], behind.way.upstream.count - before

    async def each():
        return [await script(behind) for behind in (both.short, both.ordinary)]

    short, ordinary = both.runner.run(each())
    assert short == ordinary
    heard, asked = short
    assert asked == 1
    assert {data.count(b"HTTP/1.1 200 OK") for data in heard} == {2, 4}


def has_heard(peer, length):
    return len(peer.heard.data) >= length or peer.heard.ended


def test_nobody_gets_anothers_answer(both):
    """Many at once over few connections: some send whatever they can think of, the others are answered."""
    attacks = [*NOT_PLAIN.values(), *BODIES.values(), *CAPTURED.values()]

    async def attack(behind, waiting):
        for data in waiting:
            await behind.hear(HIT, data, data + HIT)

    async def ask(behind, number, attackers):
        """Ask for the same again and again; every answer is that of a hit, which is the first here."""
        question = head(*BROWSER, target=feed(f"victim{number}.test"))
        for _ in range(2):
            await behind.hear(question)
        alone = (await behind.hear(question)).data
        answer, asked = alone[: alone.rindex(b"HTTP/1.1 ")], 0
        while not attackers.done():
            peer, expected = await behind.connect(), b""
            while not attackers.done() and len(expected) < MOST_BYTES:
                await peer.send(question)
                expected += answer
                await until(functools.partial(has_heard, peer, len(expected)))
                assert peer.heard.data == expected
                asked += 1
            await peer.leave()
        return asked

    async def script(behind):
        waiting = iter(attacks * 2)
        attackers = asyncio.gather(*(attack(behind, waiting) for _ in range(8)))
        asked = await asyncio.gather(*(ask(behind, number, attackers) for number in range(VICTIMS)))
        await attackers
        return asked

    async def each():
        return [await script(behind) for behind in (both.short, both.ordinary)]

    asked = both.runner.run(each())
    assert min(itertools.chain(*asked)) > 0
    assert both.smuggled() == []

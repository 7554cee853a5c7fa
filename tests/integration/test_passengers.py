"""Plain questions that wait for a flight below ASGI, without a task each: nothing else becomes of them."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from harness.corpus import head
from harness.proxy import feed
from harness.upstream import json_response, xrpc_error
from harness.waiting import until
from harness.wire import Wire
from proxy.feeds.counting import OUTCOMES
from proxy.feeds.flight import Flights
from proxy.feeds.reply import Reply
from proxy.web_server import web_server

METHOD = "app.bsky.feed.getAuthorFeed"
BIG = {"feed": [{"post": {"text": "text " * 40, "n": n}} for n in range(40)]}


class Crowd:
    """Clients of one proxy that ask by connections of their own, and an upstream that answers when told."""

    def __init__(self, proxy, upstream):
        self.proxy = proxy
        self.upstream = upstream
        upstream.answer = lambda _: json_response(BIG)
        upstream.hold = asyncio.Event()
        self.server = web_server(proxy.web.app, proxy.settings, proxy.web.reading.hits.answer)
        self.wires = []

    def ask(self, *fields, target=None):
        wire = Wire(self.server)
        wire.protocol.data_received(head("Host: p", *fields, target=target or feed()))
        self.wires.append(wire)
        return wire

    async def answers(self):
        """Of all that asked, once the upstream has answered."""
        self.upstream.hold.set()
        for wire in self.wires:
            await wire.quiet()
        return [parsed(wire.sent) for wire in self.wires if not wire.is_closing()]

    def counted(self):
        """How many reads had which outcome."""
        totals = self.proxy.process.board.totals(self.proxy.clock.steady())
        counted = {name: totals.sum("feedproxy_requests", METHOD, name) for name in OUTCOMES}
        return {name: count for name, count in counted.items() if count}


def parsed(sent):
    lines, _, body = bytes(sent).partition(b"\r\n\r\n")
    status, *fields = lines.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    assert int(headers["content-length"]) == len(body), "one answer, whole"
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


@pytest.fixture
async def crowd(start, upstream):
    async with start(UPSTREAM_TIMEOUT=1) as proxy:
        await until(lambda: not proxy.web.reading.link.warming)
        crowd = Crowd(proxy, upstream)
        yield crowd
        upstream.hold.set()
        for wire in crowd.wires:
            wire.end()


async def test_they_share_one_request_and_have_no_tasks(crowd):
    for _ in range(50):
        crowd.ask()
    await until(lambda: crowd.upstream.count == 1)
    assert crowd.proxy.web.reading.service.followers == 50
    assert not crowd.server.server_state.tasks
    first, *others = await crowd.answers()
    assert {answer.status_code for answer in (first, *others)} == {200}
    assert {answer.json()["feed"][0]["post"]["n"] for answer in (first, *others)} == {0}
    assert first.headers["cache-status"] == "feedproxy; fwd=uri-miss; fwd-status=200; stored"
    assert {answer.headers["cache-status"] for answer in others} == {
        "feedproxy; fwd=uri-miss; fwd-status=200; stored; collapsed"
    }
    assert crowd.upstream.count == 1
    assert crowd.proxy.web.reading.service.followers == 0
    assert crowd.server.server_state.total_requests == 50


async def test_each_has_the_coding_it_likes(crowd):
    for _ in range(3):
        for coding in ("br", "zstd", "gzip", "identity"):
            crowd.ask(f"Accept-Encoding: {coding}")
    answers = await crowd.answers()
    assert [answer.headers.get("content-encoding", "identity") for answer in answers] == [
        *("br", "zstd", "gzip", "identity") * 3
    ]
    assert all(answer.json() == BIG for answer in answers)
    assert len({answer.headers["etag"] for answer in answers}) == 4
    assert crowd.upstream.count == 1


def test_a_reply_that_is_shared_has_the_head_of_the_moment():
    reply = Reply(200, [(b"age", b"0")], b"body")
    for date in (b"now", b"now", b"later"):
        told = reply.as_sent([(b"date", date)])
        assert told == b"HTTP/1.1 200 OK\r\ndate: %b\r\nage: 0\r\n\r\nbody" % date
    last = reply.as_sent([(b"date", b"later")], last=True)
    assert last == b"HTTP/1.1 200 OK\r\ndate: later\r\nage: 0\r\nconnection: close\r\n\r\nbody"


async def test_a_connection_is_not_idle_while_its_answer_is_waited_for(crowd):
    wire = crowd.ask()
    wire.protocol.timeout_keep_alive = 0.05
    first, *_ = await crowd.answers()
    assert first.status_code == 200
    crowd.upstream.hold = asyncio.Event()
    # The timer of the first answer runs while the second is waited for.
    wire.sent.clear()
    wire.protocol.data_received(head("Host: p", target=feed("bob.test")))
    await until(lambda: crowd.upstream.count == 2)
    fired = wire.protocol.timeout_keep_alive_task
    await until(lambda: wire.protocol.timeout_keep_alive_task is not fired)
    assert not wire.is_closing()
    (second,) = await crowd.answers()
    assert second.status_code == 200
    await until(wire.is_closing)


async def test_half_a_head_that_came_meanwhile_has_its_time_and_no_more(crowd, monkeypatch):
    monkeypatch.setattr("proxy.edge.HEAD_S", 1.0)
    wire = crowd.ask()
    wire.protocol.data_received(head("Host: p")[:20])
    (answer,) = await crowd.answers()
    assert answer.status_code == 200
    wire.sent.clear()
    await until(wire.is_closing)
    assert wire.sent.startswith(b"HTTP/1.1 408 ")


async def test_who_leaves_is_told_nothing_and_takes_nothing_from_others(crowd):
    leaving = [crowd.ask() for _ in range(5)]
    staying = [crowd.ask() for _ in range(5)]
    await until(lambda: crowd.upstream.count == 1)
    for wire in leaving:
        wire.end()
    assert crowd.proxy.web.reading.service.followers == len(staying) + 1, "one counts those who left"
    answers = await crowd.answers()
    assert [answer.status_code for answer in answers] == [200] * len(staying)
    assert [bytes(wire.sent) for wire in leaving] == [b""] * 5
    assert crowd.server.server_state.total_requests == len(staying)
    await until(lambda: sum(crowd.counted().values()) == 10)
    assert crowd.counted() == {"miss": 1, "collapsed": 9}
    assert crowd.upstream.count == 1


async def test_nothing_remains_of_a_connection_that_is_reset(crowd):
    wire = crowd.ask()
    await crowd.answers()
    crowd.upstream.hold = asyncio.Event()
    wire.protocol.data_received(head("Host: p", target=feed("bob.test")))
    assert wire.protocol.timeout_keep_alive_task is not None
    wire.end(ConnectionResetError())
    assert wire.protocol.timeout_keep_alive_task is None
    crowd.upstream.hold.set()
    await until(lambda: not crowd.proxy.web.reading.service.followers)
    assert crowd.server.server_state.connections == set()


async def test_who_left_takes_no_place_from_others(crowd, monkeypatch):
    monkeypatch.setattr("proxy.feeds.flight.MAX_WAITERS", 3)
    for _ in range(20):
        crowd.ask().end(ConnectionResetError())
    crowd.ask()
    crowd.ask(target=feed("bob.test"))
    assert [answer.status_code for answer in await crowd.answers()] == [200, 200]


async def test_one_too_many_is_told_to_come_back(crowd, monkeypatch):
    monkeypatch.setattr("proxy.feeds.flight.MAX_WAITERS", 3)
    for _ in range(5):
        crowd.ask()
    answers = await crowd.answers()
    assert [answer.status_code for answer in answers] == [200] * 3 + [503] * 2
    assert all(answer.headers["retry-after"] == "1" for answer in answers[3:])


async def test_a_flight_that_never_lands_leaves_nobody_waiting(crowd, monkeypatch):
    async def stuck(*_args, **_options):
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr("proxy.feeds.fill.Filler.fill", stuck)
    for _ in range(3):
        crowd.ask()
    answers = await crowd.answers()
    assert [answer.status_code for answer in answers] == [504] * 3
    assert crowd.proxy.web.reading.service.followers == 0
    crowd.ask()
    assert crowd.proxy.web.reading.service.flights == 2, "newcomers have a flight of their own"


async def test_nobody_joins_a_flight_whose_waiters_were_called(clock):
    """The loop's timer may fire before the clock says that it is time: nothing would call who joins then."""
    flights = Flights(clock, max_age_s=0.01, crashed=str)
    called = asyncio.Event()
    flight, _ = flights.join("a key", asyncio.get_running_loop().create_future)
    flights.call_when_landed(flight, called.set)
    await called.wait()
    assert flights.joinable("a key") is None
    _, started = flights.join("a key", asyncio.get_running_loop().create_future)
    assert started
    await flights.drain(0)


async def test_a_bug_where_replies_are_made_leaves_nobody_waiting(crowd, monkeypatch):
    def crash(*_args):
        raise MemoryError("no room")

    monkeypatch.setattr("proxy.feeds.reply.Replies.serve", crash)
    for _ in range(3):
        crowd.ask()
    crowd.upstream.hold.set()
    for wire in crowd.wires:
        await wire.quiet()
    assert [wire.sent[:12] for wire in crowd.wires] == [b"HTTP/1.1 500"] * 3
    assert crowd.proxy.web.reading.service.followers == 0


async def test_one_who_cannot_be_told_takes_nothing_from_others(crowd, monkeypatch):
    def crash(_data):
        raise RuntimeError("the handler is closed")

    first, *others = [crowd.ask() for _ in range(3)]
    monkeypatch.setattr(first, "write", crash)
    crowd.upstream.hold.set()
    for wire in others:
        await wire.quiet()
    assert [parsed(wire.sent).status_code for wire in others] == [200, 200]


@pytest.mark.parametrize("status", [200, 500])
async def test_each_is_counted_once(crowd, status):
    crowd.upstream.answer = lambda _: json_response(BIG, status=status)
    for _ in range(20):
        crowd.ask()
    await crowd.answers()
    await until(lambda: sum(crowd.counted().values()) == 20)
    assert crowd.counted() == ({"miss": 1, "collapsed": 19} if status == 200 else {"error": 20})


async def test_what_lately_failed_is_not_asked_again(crowd):
    crowd.upstream.answer = lambda _: xrpc_error(500, "InternalServerError")
    crowd.ask()
    await crowd.answers()
    again = [crowd.ask() for _ in range(3)]
    assert [answer.status_code for answer in await crowd.answers()] == [502] * 4
    assert all(b"; detail=failing" in wire.sent for wire in again)
    assert crowd.upstream.count == 1


async def test_what_is_meant_for_one_is_asked_for_by_each(crowd):
    crowd.upstream.answer = lambda _: json_response(BIG, headers={"cache-control": "private"})
    for _ in range(3):
        crowd.ask()
    await crowd.answers()
    assert crowd.upstream.count == 3
    later = [crowd.ask() for _ in range(3)]
    await crowd.answers()
    assert crowd.upstream.count == 6
    assert all(b"; detail=private" in wire.sent and b"collapsed" not in wire.sent for wire in later)


async def test_a_refusal_is_not_told_as_a_request_that_was_shared(crowd):
    """Nothing was forwarded (RFC 9211 §2.7)."""
    crowd.proxy.web.reading.gate.hold_off(3600)
    for _ in range(3):
        crowd.ask()
    answers = await crowd.answers()
    assert [answer.status_code for answer in answers] == [503] * 3
    assert {answer.headers["cache-status"] for answer in answers} == {"feedproxy"}


async def test_who_asks_in_the_last_moment_is_answered_when_there_is_no_more_time(crowd):
    crowd.ask()
    crowd.proxy.web.give_up()
    assert parsed(crowd.wires[0].sent).status_code == 504

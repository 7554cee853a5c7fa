"""What must never be stored, shared or believed; and bad input, which never reaches the upstream."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import random

import pytest

from harness.proxy import FEED, feed
from harness.upstream import Response, json_response
from proxy.bluesky.appview import Reply


async def test_nothing_outside_the_key_changes_what_others_get(start, upstream):
    upstream.answer = lambda request: json_response({"saw": request.headers, "target": request.target})
    poison = [
        {"host": "evil.example"},
        {"x-forwarded-host": "evil.example", "x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "ftp"},
        {"authorization": "Bearer x"},
        {"cookie": "session=1"},
        {"cache-control": "no-cache"},
        {"pragma": "no-cache"},
        {"range": "bytes=0-1"},
        {"x-original-url": "/metrics", "x-http-method-override": "DELETE"},
        {"accept": "text/html"},
        {"accept-language": "xx"},
        {"atproto-proxy": "did:web:evil.example#x"},
        {"content-length": "0"},
    ]
    async with start() as proxy:
        bodies = set()
        for number, headers in enumerate(poison):
            answer = await proxy.client.get(feed(f"a{number}.test", evil="1"), headers=headers)
            plain = await proxy.get(feed(f"a{number}.test"))
            assert answer.content == plain.content
            bodies.add(json.dumps(plain.json()["saw"], sort_keys=True))
        assert len(bodies) == 1
        assert upstream.count == len(poison)


async def test_ten_thousand_random_parameters_are_one_question(start, upstream):
    draw = random.Random(1)
    async with start() as proxy:
        for _ in range(10_000):
            name = "".join(draw.choices("abcdefghijklmnop", k=6))
            answer = await proxy.get(f"{feed()}&{name}={draw.random()}")
            assert answer.status_code == 200
    assert upstream.count == 1


async def test_the_same_question_in_three_spellings_is_one(start, upstream):
    async with start() as proxy:
        for query in ("actor=ALICE.test&limit=50&utm=1", "limit=50&actor=alice.test", "actor=alice.test"):
            await proxy.get(f"{FEED}?{query}")
    assert upstream.count == 1
    assert upstream.requests[0].target == f"{FEED}?actor=alice.test"


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({"Cache-Control": "no-store"}, "no-store"),
        ({"Cache-Control": "private, max-age=60"}, "private"),
        ({"Vary": "*"}, "vary"),
        ({"Vary": "Cookie, *"}, "vary"),
    ],
)
async def test_what_must_not_be_shared_is_given_to_each_alone(start, upstream, store, headers, detail):
    numbers = iter(range(1000))
    upstream.answer = lambda _: json_response({"number": next(numbers)}, headers=headers, delay_s=0.05)
    async with start() as proxy:
        answers = await proxy.together(10, feed())
        assert len({answer.json()["number"] for answer in answers}) == 10
        for answer in answers:
            assert f"detail={detail}" in answer.headers["cache-status"]
            assert "stored" not in answer.headers["cache-status"]
            assert answer.headers["cache-control"] == "no-store"
        second = await proxy.together(10, feed())
        assert not {a.json()["number"] for a in second} & {a.json()["number"] for a in answers}
        assert upstream.count == 20
        health = (await proxy.get("/health")).json()
        assert health["status"] == "warn"
        await proxy.landed()
    assert store.keys() == []


async def test_no_cache_and_max_age_of_the_upstream_do_not_shorten_the_ttl(start, upstream, clock):
    upstream.answer = lambda _: json_response({"feed": []}, headers={"Cache-Control": "no-cache, max-age=0"})
    async with start(clock=clock, CACHE_TTL=600) as proxy:
        await proxy.get(feed())
        await proxy.pass_time(400)
        assert (await proxy.get(feed())).headers["cache-status"].startswith("feedproxy; hit; ttl=")
    assert upstream.count == 1


BROKEN = {
    "cut off": Response(body=b'{"feed":[]}' * 100, cut_at=50),
    "oversize": Response(body=b'{"feed":"' + b"x" * (2 * 1024 * 1024) + b'"}'),
    "HTML": Response(body=b"<html>sign in</html>", headers={"Content-Type": "text/html"}),
    "HTML that says JSON": Response(body=b"<html>"),
    "JSON that says HTML": Response(body=b'{"feed":[]}', headers={"Content-Type": "text/html"}),
    "not an object": Response(body=b"[1,2]"),
    "half a document": Response(body=b'{"feed":['),
    "empty": Response(body=b""),
    "a 400 that is not XRPC": Response(status=400, body=b"<html>", headers={"Content-Type": "text/html"}),
    "a 404 that is not XRPC": Response(status=404, body=b'{"detail":"x"}'),
    "a bomb": Response(body=gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"}),
    "gzip cut off": Response(body=gzip.compress(b'{"feed":[]}')[:-9], headers={"Content-Encoding": "gzip"}),
    "gzip damaged": Response(body=b"\x1f\x8b" + b"x" * 50, headers={"Content-Encoding": "gzip"}),
    "an unknown coding": Response(body=b"{}", headers={"Content-Encoding": "br"}),
    "304 to a plain request": Response(status=304, body=b""),
    "204": Response(status=204, body=b""),
    "206": Response(status=206, body=b'{"feed":[]}'),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_answers_are_refused_and_replace_nothing(start, upstream, store, clock, broken):
    async with start(clock=clock, CACHE_TTL=10) as proxy:
        good = await proxy.get(feed("known.test"))
        await proxy.pass_time(20)
        upstream.answer = lambda _: broken
        answer = await proxy.get(feed("new.test"))
        assert answer.status_code == 502
        assert answer.json()["error"] == "UpstreamFailure"
        for _ in range(3):
            stale = await proxy.get(feed("known.test"))
            assert stale.content == good.content
            await proxy.landed()
    assert len(store.keys()) == 1


async def test_gzip_from_upstream_comes_through_whole(start, upstream):
    body = json.dumps({"feed": ["ü" * 1000]}).encode()
    upstream.answer = lambda _: Response(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    async with start() as proxy:
        answer = await proxy.get(feed(), accept_encoding="identity")
    assert answer.content == body


async def test_set_cookie_reaches_no_client_and_no_store(start, upstream, store):
    upstream.answer = lambda _: json_response({"feed": []}, headers={"Set-Cookie": "secret-cookie=1"})
    async with start() as proxy:
        first = await proxy.get(feed())
        second = await proxy.get(feed())
        await proxy.landed()
    assert "set-cookie" not in first.headers
    assert "set-cookie" not in second.headers
    assert "stored" in first.headers["cache-status"]
    assert upstream.count == 1
    assert not any(b"secret-cookie" in value for fields in store.values() for value in fields.values())


async def test_a_user_cannot_claim_anothers_handle_in_a_record(start, upstream, store):
    hostile = {"handle": "alice.test", "did": "did:plc:evil"}
    upstream.answer = lambda _: json_response(
        {"feed": [{"post": {"record": hostile, "author": {"handle": "bob.test", "did": "did:plc:bob"}}}]}
    )
    async with start() as proxy:
        await proxy.get(feed("alice.test"))
        await store.wait_for_keys(1)
    assert b"did:plc:evil" not in store.values()[0][b"meta"]


BAD = {
    "unknown method": ("GET", "/xrpc/app.bsky.feed.getNothing", 404, "MethodNotImplemented"),
    "needs a login": ("GET", "/xrpc/app.bsky.feed.getTimeline", 404, "MethodNotImplemented"),
    "procedure": ("POST", "/xrpc/com.atproto.repo.createRecord", 404, "MethodNotImplemented"),
    "no NSID": ("GET", "/xrpc/", 400, "InvalidRequest"),
    "NSID with a slash": ("GET", "/xrpc/a/b", 400, "InvalidRequest"),
    "POST": ("POST", feed(), 405, "InvalidRequest"),
    "PUT": ("PUT", feed(), 405, "InvalidRequest"),
    "DELETE": ("DELETE", feed(), 405, "InvalidRequest"),
    "limit 0": ("GET", feed(limit=0), 400, "InvalidRequest"),
    "limit 101": ("GET", feed(limit=101), 400, "InvalidRequest"),
    "limit abc": ("GET", feed(limit="abc"), 400, "InvalidRequest"),
    "limit 1.5": ("GET", feed(limit="1.5"), 400, "InvalidRequest"),
    "limit in other digits": ("GET", feed(limit="٣"), 400, "InvalidRequest"),
    "limit of a thousand digits": ("GET", feed(limit="9" * 1000), 400, "InvalidRequest"),
    "no actor": ("GET", FEED, 400, "InvalidRequest"),
    "empty actor": ("GET", f"{FEED}?actor=", 400, "InvalidRequest"),
    "@handle": ("GET", feed("@alice.test"), 400, "InvalidRequest"),
    "two actors": ("GET", f"{FEED}?actor=a.test&actor=b.test", 400, "InvalidRequest"),
    "not UTF-8": ("GET", f"{FEED}?actor=%ff%fe", 400, "InvalidRequest"),
    "boolean maybe": ("GET", feed(includePins="maybe"), 400, "InvalidRequest"),
    "bad URI": ("GET", "/xrpc/app.bsky.feed.getPostThread?uri=nope", 400, "InvalidRequest"),
    "26 uris": (
        "GET",
        "/xrpc/app.bsky.feed.getPosts?" + "&".join(["uris=at://did:plc:a/app.bsky.feed.post/b"] * 26),
        400,
        "InvalidRequest",
    ),
    "bad handle": (
        "GET",
        "/xrpc/com.atproto.identity.resolveHandle?handle=bad_handle",
        400,
        "InvalidRequest",
    ),
    "somewhere else": ("GET", "/nothing", 404, "NotFound"),
}


@pytest.mark.parametrize(("method", "target", "status", "error"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_a_clear_error_and_no_request(start, upstream, method, target, status, error):
    async with start() as proxy:
        answer = await proxy.client.request(method, target)
    assert answer.status_code == status
    document = answer.json()
    assert document["error"] == error
    assert document["message"]
    assert upstream.count == 0
    assert answer.headers["cache-control"] == "no-store"


async def test_too_many_labelers_are_refused(start, upstream):
    many = ",".join(f"did:plc:a{number}" for number in range(21))
    async with start() as proxy:
        answer = await proxy.get(feed(), atproto_accept_labelers=many)
    assert answer.status_code == 400
    assert upstream.count == 0


async def test_one_trailing_slash_is_accepted(start, upstream):
    async with start() as proxy:
        for path in (f"{FEED}/?actor=alice.test", feed()):
            assert (await proxy.get(path)).status_code == 200
    assert upstream.count == 1


async def test_too_many_waiters_are_told_to_come_back(start, upstream, monkeypatch):
    monkeypatch.setattr("proxy.feeds.flight.MAX_WAITERS", 10)
    upstream.delay_s = 0.1
    async with start() as proxy:
        answers = await proxy.together(30, feed())
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [503] * 20
    assert upstream.count == 1


async def test_a_bug_in_a_flight_leaves_nobody_hanging(start, upstream, monkeypatch):
    def crash(_body):
        raise MemoryError("no room")

    monkeypatch.setattr("proxy.feeds.arrivals.compressed", crash)
    async with start() as proxy:
        async with asyncio.timeout(5):
            answers = await proxy.together(10, feed())
    assert {answer.status_code for answer in answers} == {502}


async def test_cookies_of_the_upstream_are_not_sent_back(start, upstream):
    numbers = iter(range(100))
    upstream.answer = lambda _: json_response({}, headers={"Set-Cookie": f"c{next(numbers)}=x; Path=/"})
    async with start() as proxy:
        for number in range(5):
            await proxy.get(feed(f"a{number}.test"))
    assert upstream.count == 5
    assert not any("cookie" in request.headers for request in upstream.requests)


def nested(depth):
    """A thread of `depth` replies, as the AppView nests them."""
    return b'{"thread":' + b'{"replies":[' * depth + b"{}" + b"]}" * depth + b"}"


async def test_a_long_thread_comes_through(start, upstream):
    body = nested(1000)
    upstream.answer = lambda _: Response(body=body)
    thread = "/xrpc/app.bsky.feed.getPostThread?uri=at://did:plc:a/app.bsky.feed.post/b&depth=1000"
    async with start() as proxy:
        answer = await proxy.get(thread)
        assert answer.status_code == 200
        assert answer.content == body
        for number, broken in enumerate((body[:-1], body + b"x", nested(6000), b"[" * 3000)):
            upstream.answer = lambda _, broken=broken: Response(body=broken)
            answer = await proxy.get(f"{thread}&parentHeight={number}")
            assert answer.status_code == 502


async def test_a_deep_document_does_not_stall_the_loop(start, upstream):
    """A user may nest a record as deep as the network takes it; everyone else's answers go on meanwhile."""
    record = b'{"x":' * 3000 + b"1" + b"}" * 3000
    upstream.answer = lambda _: Response(body=b'{"feed":[' + b",".join([record] * 90) + b"]}")
    async with start() as proxy:
        slow = asyncio.create_task(proxy.get(feed()))
        turns = 0
        while not slow.done():
            await asyncio.sleep(0)
            turns += 1
    assert slow.result().status_code == 200
    assert turns > 100


async def test_failures_keep_nothing_of_what_failed(start, upstream):
    big = b'{"error":"InternalServerError","message":"' + b"x" * 200_000 + b'"}'
    upstream.answer = lambda _: Response(status=500, body=big)
    async with start() as proxy:
        for number in range(20):
            assert (await proxy.get(feed(f"a{number}.test"))).status_code == 502
        await proxy.landed()
        gc.collect()
        held = [found for found in gc.get_objects() if isinstance(found, Reply)]
    assert held == []


async def test_health_forgets_what_was_cured(start, upstream, clock):
    upstream.answer = lambda _: json_response({}, headers={"Cache-Control": "no-store"})
    async with start(clock=clock, NEGATIVE_TTL=60) as proxy:
        await proxy.get(feed())
        assert (await proxy.get("/health")).json()["checks"]["storability"][0]["status"] == "warn"
        upstream.answer = upstream.feed
        await proxy.pass_time(61)
        await proxy.get(feed())
        assert (await proxy.get("/health")).json()["status"] == "pass"

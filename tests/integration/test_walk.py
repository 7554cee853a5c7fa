"""What a client sees as an answer ages: fresh, stale, old, gone; and what the headers say of it."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import datetime

import brotli
import pytest
import zstandard

from harness.clock import FakeClock
from harness.proxy import feed
from harness.upstream import Response, json_response, xrpc_error


def status(answer):
    return answer.headers["cache-status"]


def ttl(answer):
    return int(status(answer).partition("ttl=")[2].partition(";")[0])


async def refreshed(proxy, target):
    """The answer once the refresh in the background has landed."""
    await proxy.landed()
    return await proxy.get(target)


async def test_fresh_then_stale_then_old_then_gone(start, upstream, clock):
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=1000, STALE_IF_ERROR=10_000) as proxy:
        miss = await proxy.get(feed())
        assert status(miss) == "feedproxy; fwd=uri-miss; fwd-status=200; stored"
        await proxy.pass_time(50)
        hit = await proxy.get(feed())
        assert status(hit).startswith("feedproxy; hit; ttl=")
        assert 38 <= ttl(hit) <= 60
        assert hit.headers["age"] == "50"
        assert upstream.count == 1

        upstream.version = 2
        await proxy.pass_time(100)
        stale = await proxy.get(feed())
        assert status(stale).endswith("; detail=stale-while-revalidate")
        assert -60 <= ttl(stale) < 0
        assert stale.json()["version"] == 1
        new = await refreshed(proxy, feed())
        assert new.json()["version"] == 2
        assert new.headers["age"] == "0"
        assert upstream.count == 2

        await proxy.pass_time(2000)
        old = await proxy.get(feed())
        assert status(old) == "feedproxy; fwd=stale; fwd-status=304; stored"

        await upstream.stop()
        await proxy.pass_time(2000)
        old = await proxy.get(feed())
        assert old.status_code == 200
        assert "; detail=stale-if-error" in status(old)
        assert old.headers["age"] == "2000"
        await proxy.pass_time(10_000)
        gone = await proxy.get(feed())
        assert gone.status_code == 502
        assert gone.json()["error"] == "UpstreamFailure"


async def test_early_refresh_before_anyone_sees_it_stale(start, upstream, clock):
    async with start(clock=clock, CACHE_TTL=100) as proxy:
        await proxy.get(feed())
        upstream.version = 2
        seen = []
        for _ in range(125):
            await proxy.pass_time(1)
            seen.append(status(await proxy.get(feed())))
        await proxy.landed()
    assert upstream.count == 2
    # With a fetch that took no time by this clock the draw is 0: the refresh falls on the expiry itself.
    assert sum("stale" in each for each in seen) <= 40


async def test_an_old_copy_is_served_after_two_seconds_of_trying(start, upstream, clock):
    async with start(clock=clock, CACHE_TTL=10, STALE_WHILE_REVALIDATE=0, STALE_IF_ERROR=1000) as proxy:
        await proxy.get(feed())
        await proxy.pass_time(100)
        upstream.answer = lambda _: Response(hang=True)
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        answer = await proxy.get(feed())
        assert 1.9 <= loop.time() - asked_at < 8
        assert answer.status_code == 200
        assert "; detail=stale-if-error" in status(answer)
        await upstream.stop()


async def test_a_304_confirms_without_the_body(start, upstream, clock, store):
    async with start(clock=clock, CACHE_TTL=100) as proxy:
        first = await proxy.get(feed())
        await store.wait_for_keys(1)
        await proxy.pass_time(150)
        await proxy.get(feed())
        answer = await refreshed(proxy, feed())
        assert upstream.requests[1].headers["if-none-match"].startswith('W/"')
        assert answer.headers["age"] == "0"
    assert answer.content == first.content
    assert answer.headers["etag"] == first.headers["etag"]


async def test_an_answer_that_says_the_same_leaves_what_is_stored_of_it(start, upstream, clock, store):
    """Its age starts anew and its headers are new, for the whole fleet; its bodies are not sent again."""
    labelers = {"value": "did:plc:one"}
    author = {"handle": "alice.test", "did": f"did:plc:{'a' * 24}"}
    upstream.answer = lambda _: json_response(
        {"feed": [{"post": {"author": author}}], "filler": "x" * 600},
        headers={"atproto-content-labelers": labelers["value"]},
        validates=False,
    )
    async with start(clock=clock, CACHE_TTL=100) as proxy:
        first = await proxy.get(feed())
        await store.wait_for_keys(1)
        store.set_field("body:br", brotli.compress(b"as it was"))
        labelers["value"] = "did:plc:two"
        await proxy.pass_time(150)
        await proxy.get(feed())
        again = await refreshed(proxy, feed())
        assert (again.headers["age"], again.headers["etag"]) == ("0", first.headers["etag"])
        assert again.headers["atproto-content-labelers"] == "did:plc:two"
        assert again.content == first.content
    (kept,) = store.values()
    assert kept[b"body:br"] == brotli.compress(b"as it was")
    assert json.loads(kept[b"meta"])["dids"] == {author["handle"]: author["did"]}
    async with start(clock=clock, CACHE_TTL=100) as other:
        told = await other.get(feed())
        assert status(told).startswith("feedproxy; hit")
        assert (told.headers["age"], told.headers["atproto-content-labelers"]) == ("0", "did:plc:two")
    assert upstream.count == 2


async def test_an_answer_that_says_another_thing_replaces_what_is_stored(start, upstream, clock, store):
    async with start(clock=clock, CACHE_TTL=100) as proxy:
        first = await proxy.get(feed())
        await store.wait_for_keys(1)
        upstream.version = "another"
        await proxy.pass_time(150)
        await proxy.get(feed())
        again = await refreshed(proxy, feed())
        assert again.json()["version"] == "another"
        assert again.headers["etag"] != first.headers["etag"]
    (kept,) = store.values()
    assert brotli.decompress(kept[b"body:br"]) == again.content


async def test_what_says_the_same_as_another_host_has_lost_is_stored_whole(start, upstream, clock, store):
    upstream.answer = lambda _: json_response({"feed": [], "filler": "x" * 600}, validates=False)
    async with start(clock=clock, CACHE_TTL=100) as proxy:
        first = await proxy.get(feed())
        await store.wait_for_keys(1)
        store.replace_by_text()
        await proxy.pass_time(150)
        await proxy.get(feed())
        await refreshed(proxy, feed())
    (kept,) = store.values()
    assert brotli.decompress(kept[b"body:br"]) == first.content


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [(400, "InvalidRequest", "Profile not found"), (404, "NotFound", "no"), (410, "Gone", "gone")],
)
async def test_negative_answers_pass_through_and_are_kept_for_their_ttl(
    start, upstream, clock, code, error, message
):
    upstream.answer = lambda _: xrpc_error(code, error, message)
    async with start(clock=clock, NEGATIVE_TTL=60) as proxy:
        for _ in range(3):
            answer = await proxy.get(feed("nobody.test"))
            assert answer.status_code == code
            assert answer.json() == {"error": error, "message": message}
        assert upstream.count == 1
        assert "stale" not in answer.headers["cache-control"]
        await proxy.pass_time(70)
        answer = await proxy.get(feed("nobody.test"))
        assert upstream.count == 2
        assert status(answer).startswith("feedproxy; fwd=uri-miss")


@pytest.mark.parametrize("code", [401, 403, 408, 429, 500, 501, 502, 503, 504, 302, 418])
async def test_trouble_never_replaces_a_copy(start, upstream, clock, code):
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(feed())
        await proxy.pass_time(1000)
        upstream.answer = lambda _: xrpc_error(code, "Whatever")
        for _ in range(3):
            answer = await proxy.get(feed())
            assert answer.status_code == 200
            assert f"; detail=stale-if-error; fwd-status={code}" in status(answer)
        await proxy.pass_time(100)
        upstream.answer = upstream.feed
        assert "fwd-status=304" in status(await proxy.get(feed()))


async def test_headers_of_an_answer(start, upstream):
    upstream.answer = lambda request: json_response(
        {"feed": []},
        headers={
            "Atproto-Content-Labelers": "did:plc:x;redact",
            "Set-Cookie": "a=b",
            "Age": "200",
            "X-Powered-By": "Express",
            "Server-Timing": "a;dur=1",
        },
    )
    async with start() as proxy:
        before = datetime.now().astimezone()
        answer = await proxy.get(feed(), origin="https://site.example")
    headers = answer.headers
    assert headers["atproto-content-labelers"] == "did:plc:x;redact"
    assert headers["age"] == "200"
    assert headers["cache-control"] == "public, max-age=230, stale-while-revalidate=60, stale-if-error=604800"
    assert headers["feed-updated"] == "updated 3 minutes ago"
    updated_at = datetime.fromisoformat(headers["feed-updated-at"])
    assert abs((before - updated_at).total_seconds() - 200) < 3
    assert headers["vary"] == "Accept-Encoding, Atproto-Accept-Labelers"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["access-control-allow-origin"] == "*"
    assert "feed-updated-at" in headers["access-control-expose-headers"]
    for private in ("set-cookie", "x-powered-by", "server-timing"):
        assert private not in headers


async def test_encodings_are_the_same_body_with_tags_of_their_own(start, upstream):
    body = upstream.feed
    upstream.answer = body
    async with start() as proxy:
        plain = await proxy.get(feed(), accept_encoding="identity")
        tags = {plain.headers["etag"]}
        unpack = {
            "gzip": gzip.decompress,
            "br": brotli.decompress,
            "zstd": lambda raw: zstandard.ZstdDecompressor().decompress(raw),
        }
        for coding, decode in unpack.items():
            async with proxy.client.stream(
                "GET", feed(), headers={"accept-encoding": f"deflate, {coding};q=0.5"}
            ) as answer:
                raw = b"".join([part async for part in answer.aiter_raw()])
            assert answer.headers["content-encoding"] == coding
            assert int(answer.headers["content-length"]) == len(raw) < len(plain.content)
            assert decode(raw) == plain.content
            tags.add(answer.headers["etag"])
            again = await proxy.get(
                feed(), accept_encoding=coding, if_none_match=f'"x", W/{answer.headers["etag"]}'
            )
            assert again.status_code == 304
            assert again.content == b""
            assert again.headers["etag"] == answer.headers["etag"]
            assert "cache-control" in again.headers
            assert "vary" in again.headers
        assert len(tags) == 4
        assert (await proxy.get(feed(), if_none_match='"other"')).status_code == 200
        assert (await proxy.get(feed(), if_none_match="*")).status_code == 304
    assert upstream.count == 1


async def test_head_is_a_get_without_its_body(start, upstream):
    async with start() as proxy:
        head = await proxy.client.head(feed())
        assert upstream.count == 1
        get = await proxy.get(feed())
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["etag"] == get.headers["etag"]


async def test_preflight(start, upstream):
    async with start() as proxy:
        answer = await proxy.client.options(
            feed(),
            headers={
                "origin": "https://site.example",
                "access-control-request-method": "GET",
                "access-control-request-headers": "atproto-accept-labelers",
            },
        )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "atproto-accept-labelers"
    assert answer.headers["access-control-max-age"] == "86400"
    assert upstream.count == 0


async def test_listed_origins_alone_may_read(start, upstream):
    async with start(CORS_ORIGINS="https://a.example,https://b.example") as proxy:
        allowed = await proxy.get(feed(), origin="https://b.example")
        stranger = await proxy.get(feed(), origin="https://c.example")
        silent = await proxy.get(feed())
    assert allowed.headers["access-control-allow-origin"] == "https://b.example"
    assert "access-control-allow-origin" not in stranger.headers
    assert "access-control-allow-origin" not in silent.headers
    assert {answer.headers["vary"] for answer in (allowed, stranger, silent)} == {
        "Accept-Encoding, Atproto-Accept-Labelers, Origin"
    }
    assert upstream.count == 1


async def test_a_feed_may_have_a_ttl_of_its_own(start, upstream, tmp_path):
    clock = FakeClock()
    config = tmp_path / "feedproxy.toml"
    config.write_text(
        '[[feeds]]\nactor = "Fast.test"\nttl_s = 10\n'
        '[[feeds]]\nmethod = "app.bsky.actor.getProfile"\nttl_s = 5000\n'
        '[[feeds]]\nactor = "at://Known.test/app.bsky.feed.generator/x"\nttl_s = 20\n'
    )
    author = {"handle": "fast.test", "did": "did:plc:fast"}
    upstream.answer = lambda _: json_response({"feed": [{"post": {"author": author}}]})
    async with start(clock=clock, CACHE_TTL=600, CONFIG=config) as proxy:
        profile = "/xrpc/app.bsky.actor.getProfile?actor=slow.test"
        for target in (feed("fast.test"), feed("slow.test"), profile):
            await proxy.get(target)
        await proxy.pass_time(5)
        assert 4 <= ttl(await proxy.get(feed("fast.test"))) <= 6
        assert 535 <= ttl(await proxy.get(feed("slow.test"))) <= 655
        assert 4495 <= ttl(await proxy.get(profile)) <= 5495
        generator = "/xrpc/app.bsky.feed.getFeed?feed=at://KNOWN.test/app.bsky.feed.generator/x"
        for by_another_name in (feed("did:plc:fast"), generator):
            await proxy.get(by_another_name)
            assert ttl(await proxy.get(by_another_name)) <= 22
        config.write_text('[[feeds]]\nactor = "fast.test"\nttl_s = 1000\n')
        await proxy.web.reload()
        await proxy.get(feed("fast.test", limit=9))
        assert ttl(await proxy.get(feed("fast.test", limit=9))) >= 900
        config.write_text("[[nonsense")
        await proxy.web.reload()
        await proxy.get(feed("fast.test", limit=8))
        assert ttl(await proxy.get(feed("fast.test", limit=8))) >= 900, "a broken file changes nothing"


async def test_the_age_is_told_in_the_operators_language(start, upstream, clock):
    async with start(clock=clock, FEED_UPDATED_LANG="de", CACHE_TTL=10_000) as proxy:
        await proxy.get(feed())
        await proxy.pass_time(200)
        answer = await proxy.get(feed())
    assert answer.headers["feed-updated"] == "vor 3 Minuten"

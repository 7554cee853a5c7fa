"""HTTP as browsers and other caches speak it: conditional requests, HEAD, encodings, CORS, freshness."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from real.harness import cache_status, plain_client

FEED = "/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.test&limit=30"
REFUSED = "/xrpc/app.bsky.actor.getProfile?actor=nobody.test"
# What a browser sends with the request of a widget that uses @atproto/api.
CHROMIUM = {
    "Accept": "*/*",
    "Origin": "https://widget.example",
    "Referer": "https://widget.example/",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Dest": "empty",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/147.0.0.0",
}
OUR_HEADERS = ("Cache-Status", "Age", "Feed-Updated", "Feed-Updated-At", "Cache-Control", "ETag", "Vary")


def words(header: str) -> set[str]:
    return {word.strip().lower() for word in header.split(",")}


class TestConditionalRequests:
    @pytest.mark.parametrize("encoding", ["identity", "gzip", "br", "zstd"])
    def test_the_etag_of_an_encoding_revalidates_it(self, proxied, encoding):
        headers = {"Accept-Encoding": encoding}
        full = proxied.get(FEED, headers=headers)
        answer = proxied.get(FEED, headers=headers | {"If-None-Match": full.headers["etag"]})
        assert answer.status_code == 304
        assert answer.content == b""
        assert answer.headers["etag"] == full.headers["etag"]
        assert words(answer.headers["vary"]) == words(full.headers["vary"])

    def test_each_encoding_has_an_etag_of_its_own(self, proxied):
        tags = {
            proxied.get(FEED, headers={"Accept-Encoding": encoding}).headers["etag"]
            for encoding in ("identity", "gzip", "br", "zstd")
        }
        assert len(tags) == 4

    def test_a_star_and_a_list_match_too(self, proxied):
        etag = proxied.get(FEED).headers["etag"]
        for condition in ("*", f'"nope", {etag}', f'{etag}, W/"nope"'):
            assert proxied.get(FEED, headers={"If-None-Match": condition}).status_code == 304

    def test_weak_and_strong_forms_are_compared_weakly(self, proxied):
        etag = proxied.get(FEED).headers["etag"]
        other_form = etag.removeprefix("W/") if etag.startswith("W/") else f"W/{etag}"
        assert proxied.get(FEED, headers={"If-None-Match": other_form}).status_code == 304

    def test_another_etag_gets_the_whole_feed(self, proxied, direct):
        answer = proxied.get(FEED, headers={"If-None-Match": 'W/"nope"'})
        assert answer.status_code == 200
        assert answer.content == direct.get(FEED).content

    def test_a_304_tells_as_much_as_a_200(self, proxied):
        etag = proxied.get(FEED).headers["etag"]
        answer = proxied.get(FEED, headers={"If-None-Match": etag, "Origin": "https://widget.example"})
        assert answer.status_code == 304
        assert [name for name in OUR_HEADERS if name not in answer.headers] == []
        assert answer.headers["access-control-allow-origin"] == "*"
        assert cache_status(answer)["hit"] is True

    def test_a_reload_past_all_caches_gets_the_whole_feed(self, proxied, direct):
        answer = proxied.get(FEED, headers={"Cache-Control": "no-cache", "Pragma": "no-cache"})
        assert answer.status_code == 200
        assert answer.content == direct.get(FEED).content


class TestHead:
    def test_it_is_a_get_without_a_body(self, proxied):
        full = proxied.get(FEED)
        head = proxied.head(FEED)
        assert head.status_code == 200
        assert head.content == b""
        assert int(head.headers["content-length"]) == len(full.content)
        for name in ("content-type", "etag", "vary", "atproto-content-labelers", "feed-updated"):
            assert head.headers[name] == full.headers[name]

    def test_it_revalidates(self, proxied):
        etag = proxied.get(FEED).headers["etag"]
        assert proxied.head(FEED, headers={"If-None-Match": etag}).status_code == 304

    def test_an_error_has_no_body_either(self, proxied):
        answer = proxied.head(REFUSED)
        assert answer.status_code == 400
        assert answer.content == b""


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
    def test_each_decodes_to_the_appviews_bytes(self, proxied, direct, encoding):
        answer = proxied.get(FEED, headers={"Accept-Encoding": encoding})
        assert answer.headers["content-encoding"] == encoding
        assert answer.content == direct.get(FEED).content
        assert answer.num_bytes_downloaded < len(answer.content) / 2

    @pytest.mark.parametrize(
        "accepted", [None, "identity", "deflate", "gzip;q=0, identity", "br;q=0, gzip;q=0"]
    )
    def test_without_a_known_encoding_it_is_not_encoded(self, proxied, direct, accepted):
        answer = proxied.get(FEED, headers={"Accept-Encoding": accepted} if accepted else {})
        assert "content-encoding" not in answer.headers
        assert answer.content == direct.get(FEED).content

    def test_a_browser_gets_a_compact_one(self, proxied, direct):
        answer = proxied.get(FEED, headers=CHROMIUM)
        assert answer.headers["content-encoding"] in ("br", "zstd")
        assert answer.content == direct.get(FEED).content

    def test_other_caches_are_told_to_keep_them_apart(self, proxied):
        vary = words(proxied.get(FEED).headers["vary"])
        assert {"accept-encoding", "atproto-accept-labelers"} <= vary


class TestCors:
    @pytest.fixture
    def preflight(self, proxied):
        asked = {"Method": "GET", "Headers": "atproto-accept-labelers"}
        prefixed = {f"Access-Control-Request-{name}": value for name, value in asked.items()}
        return proxied.options(FEED, headers=CHROMIUM | prefixed)

    def test_the_preflight_of_a_widget_is_granted(self, preflight):
        assert preflight.status_code in (200, 204)
        assert preflight.content == b""
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert "get" in words(preflight.headers["access-control-allow-methods"])
        assert "atproto-accept-labelers" in words(preflight.headers["access-control-allow-headers"])

    def test_it_is_remembered_for_a_day(self, preflight):
        assert preflight.headers["access-control-max-age"] == "86400"

    @pytest.mark.parametrize("target", [FEED, REFUSED, "/xrpc/app.bsky.feed.nope"])
    def test_scripts_may_read_answers_and_errors(self, proxied, target):
        answer = proxied.get(target, headers=CHROMIUM)
        assert answer.headers["access-control-allow-origin"] == "*"
        exposed = words(answer.headers["access-control-expose-headers"])
        assert {"feed-updated", "feed-updated-at", "cache-status", "age"} <= exposed


class TestFreshness:
    def test_a_first_answer_says_that_it_was_fetched_and_the_next_that_it_was_stored(self, start_proxy):
        asked_at = time.monotonic()
        with plain_client(start_proxy().url) as client:
            first, second = client.get(FEED), client.get(FEED)
        status = cache_status(first)
        assert (status["fwd"], status["fwd-status"], status["stored"]) == ("uri-miss", "200", True)
        assert int(first.headers["age"]) == 0
        status = cache_status(second)
        assert status["hit"] is True
        assert 0 < int(status["ttl"]) <= 660  # CACHE_TTL is 600 s, shifted by up to a tenth
        assert int(second.headers["age"]) <= time.monotonic() - asked_at + 1

    def test_the_reader_is_told_when_the_feed_was_current(self, proxied):
        answer = proxied.get(FEED)
        now = datetime.now(UTC)
        updated_at = datetime.fromisoformat(answer.headers["feed-updated-at"])
        assert abs((now - updated_at).total_seconds() - int(answer.headers["age"])) <= 2
        assert answer.headers["feed-updated"].startswith("updated ")

    def test_what_clients_may_keep_is_the_age_and_a_little_more(self, proxied):
        answer = proxied.get(FEED)
        directives = words(answer.headers["cache-control"])
        assert "public" in directives
        assert f"max-age={int(answer.headers['age']) + 30}" in directives

    def test_nothing_is_sniffed(self, proxied):
        for target in (FEED, REFUSED):
            assert proxied.get(target).headers["x-content-type-options"] == "nosniff"

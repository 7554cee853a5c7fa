"""Which coding a client gets, who may read an answer, and what matches a tag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.feeds.headers import Manner, accepted_coding, cors, etag_matches, preflight
from proxy.feeds.storability import conditional, merged, refusal
from proxy.feeds.wording import wording

ALL = {"identity": b"", "br": b"", "zstd": b"", "gzip": b""}


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "br"),
        ("gzip, deflate, zstd", "zstd"),
        ("GZIP", "gzip"),
        ("br;q=0.5, gzip", "gzip"),
        ("br;q=0", "identity"),
        ("*", "br"),
        ("*;q=0.5, br;q=0", "zstd"),
        ("gzip;q=0.5, identity", "identity"),
        ("gzip;q=0.5, identity;q=0.1", "gzip"),
        ("identity;q=0, gzip", "gzip"),
        ("br;q=nonsense, gzip", "gzip"),
        ("deflate", "identity"),
    ],
)
def test_codings(header, coding):
    assert accepted_coding(header, ALL) == coding


def test_a_coding_that_is_not_there_is_not_chosen():
    assert accepted_coding("br, gzip", {"identity": b"", "gzip": b""}) == "gzip"


@given(st.text(max_size=60))
def test_any_header_gets_a_coding_there_is(header):
    assert accepted_coding(header, ALL) in ALL


def manner(*origins):
    return Manner(client_max_age_s=30, stale_if_error_s=60, cors_origins=origins, wording=wording("en"))


def test_origins():
    assert dict(cors(manner("*"), None))[b"access-control-allow-origin"] == b"*"
    listed = manner("https://a.example")
    assert dict(cors(listed, "https://a.example"))[b"access-control-allow-origin"] == b"https://a.example"
    assert cors(listed, "https://b.example") == []
    assert cors(listed, None) == []


def test_preflights_repeat_only_header_names():
    wanted = "atproto-accept-labelers, x-bsky-topics"
    allowed = dict(preflight(manner("*"), "https://a.example", wanted))
    assert allowed[b"access-control-allow-headers"] == wanted.encode()
    for hostile in ("x\r\nset-cookie: a", "a b", "x: y", "ü", "x" * 3000):
        assert b"access-control-allow-headers" not in dict(preflight(manner("*"), None, hostile))
    stranger = preflight(manner("https://a.example"), "https://b.example", wanted)
    assert not any(name.startswith(b"access-control-allow") for name, _ in stranger)


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (None, False),
        ('"a-br"', True),
        ('W/"a-br"', True),
        ('"x", "a-br"', True),
        ("*", True),
        ('"a"', False),
        ("a-br", False),
        ("", False),
    ],
)
def test_tags(header, matches):
    assert etag_matches(header, '"a-br"') is matches


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({}, None),
        ({"cache-control": "public, max-age=3"}, None),
        ({"cache-control": "no-cache, max-age=0, must-revalidate"}, None),
        ({"cache-control": "no-store"}, "no-store"),
        ({"cache-control": "NO-STORE, max-age=9"}, "no-store"),
        ({"cache-control": "private"}, "private"),
        ({"cache-control": 'private="set-cookie"'}, None),
        ({"vary": "Accept-Encoding"}, None),
        ({"vary": "Cookie, Authorization"}, None),
        ({"vary": "*"}, "vary"),
    ],
)
def test_what_may_be_stored(told, reason):
    assert refusal({"accept": "application/json"}, told) == reason


def test_conditional_requests_and_what_a_304_changes():
    asked = conditional({"accept": "application/json"}, 'W/"1"')
    assert asked == {"accept": "application/json", "if-none-match": 'W/"1"'}
    assert conditional({"a": "b"}, None) == {"a": "b"}
    stored = {"etag": 'W/"1"', "atproto-content-labelers": "did:plc:a"}
    assert merged(stored, {"etag": 'W/"1"', "atproto-content-labelers": "did:plc:b"}) == {
        "etag": 'W/"1"',
        "atproto-content-labelers": "did:plc:b",
    }
    assert merged(stored, {"etag": 'W/"1"'}) == stored

"""Record keys: valid, deterministic, in the order of time, spread out."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.syndication.rkey import is_key_of, record_key, record_uri

TID = re.compile(r"[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}")
ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
POST = {
    "did": "did:plc:alice",
    "site": "blog",
    "post_id": "123",
    "published_at_ms": 1_795_338_000_123,
    "generation": 0,
}


def number(key: str) -> int:
    value = 0
    for char in key:
        value = value * 32 + ALPHABET.index(char)
    return value


posts = st.fixed_dictionaries(
    {
        "did": st.text(max_size=40),
        "site": st.text(max_size=20),
        "post_id": st.text(max_size=40),
        "published_at_ms": st.integers(-(10**12), 10**16),
        "generation": st.integers(0, 5),
    }
)


@given(posts)
def test_it_is_a_tid_whatever_the_post(post):
    assert TID.fullmatch(record_key(**post))


@given(posts)
def test_it_never_changes(post):
    assert record_key(**post) == record_key(**dict(reversed(post.items())))


def test_it_is_the_same_in_every_version():
    # What was published is found again by this key: another recipe would publish it twice.
    assert record_key(**POST) == "3n2vatw364lwz"


@given(st.integers(0, 2**53 // 1000), st.integers(0, 2**53 // 1000))
def test_keys_sort_by_the_second_of_publication(one_ms, other_ms):
    one, other = (record_key(**POST | {"published_at_ms": at}) for at in (one_ms, other_ms))
    if one_ms // 1000 != other_ms // 1000:
        assert (one < other) == (one_ms < other_ms)


def test_the_time_in_it_is_the_second_of_publication():
    microseconds = number(record_key(**POST)) >> 10
    assert microseconds // 10**6 == POST["published_at_ms"] // 1000
    assert datetime.fromtimestamp(microseconds / 10**6, UTC).year == 2026


def test_within_the_second_the_milliseconds_do_not_matter():
    assert record_key(**POST) == record_key(**POST | {"published_at_ms": 1_795_338_000_999})


@pytest.mark.parametrize(
    "change", [{"did": "did:plc:bob"}, {"site": "other"}, {"post_id": "124"}, {"generation": 1}]
)
def test_everything_that_makes_a_post_another_makes_the_key_another(change):
    assert record_key(**POST) != record_key(**POST | change)


def test_another_collection_has_other_keys():
    assert record_key(**POST) != record_key(**POST, collection="app.bsky.feed.threadgate")


def test_parts_do_not_run_into_each_other():
    one = record_key(**POST | {"site": "blog", "post_id": "123"})
    assert one != record_key(**POST | {"site": "blog1", "post_id": "23"})


def test_a_thousand_posts_of_one_second_do_not_collide():
    assert len({record_key(**POST | {"post_id": str(number)}) for number in range(1000)}) == 1000


def test_microseconds_and_clock_id_are_spread_independently():
    keys = [number(record_key(**POST | {"post_id": str(index)})) for index in range(2000)]
    micros = sorted((key >> 10) % 10**6 for key in keys)
    clocks = {key % 1024 for key in keys}
    assert micros[0] < 10_000
    assert micros[-1] > 990_000
    assert len(clocks) > 700


@given(posts)
def test_a_key_tells_whose_it_is_whatever_the_date(post):
    key = record_key(**post | {"generation": post["generation"] % 4})
    whose = {name: post[name] for name in ("did", "site", "post_id")}
    assert is_key_of(key, **whose)
    for name, value in whose.items():
        assert not is_key_of(key, **whose | {name: f"{value}x"})


@pytest.mark.parametrize(
    "key", ["", "self", "3n2vatw364lw", "3n2vatw364lw1", "zzzzzzzzzzzzz", "3N2VATW364LWZ"]
)
def test_what_is_no_key_of_ours_is_nobodys(key):
    assert not is_key_of(key, did="did:plc:alice", site="blog", post_id="123")


def test_the_uri():
    assert record_uri("did:plc:a", "3abc") == "at://did:plc:a/app.bsky.feed.post/3abc"

"""A stored answer is read as it was written, or not at all."""

from __future__ import annotations

import gzip

import brotli
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.feeds.entry import FORMAT, Entry, compressed, dids_in, entry_from_fields

texts = st.text(max_size=30)
entries = st.builds(
    Entry,
    key_id=texts,
    stamp=texts,
    status=st.sampled_from([200, 400, 404]),
    content_type=texts,
    bodies=st.dictionaries(st.sampled_from(["br", "zstd", "gzip"]), st.binary()).map(
        lambda bodies: {"identity": b"{}", **bodies}
    ),
    body_hash=st.text("0123456789abcdef", max_size=24),
    upstream_etag=st.none() | texts,
    labelers=st.none() | texts,
    initial_age_s=st.floats(0, 1e6),
    cost_s=st.floats(0, 100),
    early_draw=st.floats(0, 50),
    dids=st.dictionaries(texts, texts, max_size=3),
    cursor=st.none() | texts,
)


def stored(entry):
    return {name.encode(): value for name, value in entry.to_fields().items()}


@given(entries)
def test_what_is_written_is_read(entry):
    assert entry_from_fields(stored(entry), entry.key_id) == entry


@given(entries, texts)
def test_another_questions_answer_is_never_taken(entry, other):
    found = entry_from_fields(stored(entry), other)
    assert (found is not None) == (other == entry.key_id)


@given(st.dictionaries(st.sampled_from([b"format", b"meta", b"hash", b"body:identity", b"x"]), st.binary()))
def test_anything_else_is_a_miss(fields):
    assert entry_from_fields(fields, "key") is None


@given(entries, st.integers(-5, 100))
def test_other_formats_are_a_miss(entry, number):
    fields = {**stored(entry), b"format": str(number).encode()}
    assert (entry_from_fields(fields, entry.key_id) is not None) == (number == FORMAT)


@given(entries, st.sampled_from([b"meta", b"hash", b"body:identity", b"format"]))
def test_an_incomplete_answer_is_a_miss(entry, missing):
    fields = stored(entry)
    del fields[missing]
    assert entry_from_fields(fields, entry.key_id) is None


@given(st.binary(max_size=3000) | st.integers(1, 5000).map(lambda n: b"ab" * n))
def test_every_coding_decodes_to_the_body(body):
    bodies, _ = compressed(body)
    assert bodies["identity"] == body
    unpack = {
        "identity": bytes,
        "gzip": gzip.decompress,
        "br": brotli.decompress,
        "zstd": lambda raw: zstandard.ZstdDecompressor().decompress(raw),
    }
    for coding, raw in bodies.items():
        assert unpack[coding](raw) == body
        assert coding == "identity" or len(raw) < len(body)


def test_the_same_body_has_the_same_tags_at_any_time():
    first, second = (compressed(b"x" * 1000) for _ in range(2))
    assert first == second
    assert compressed(b"y" * 1000)[1] != first[1]


ALICE = {"handle": "Alice.test", "did": "did:plc:alice"}


def test_dids_are_found_where_views_put_accounts():
    handles = frozenset({"alice.test"})
    found = {"alice.test": "did:plc:alice"}
    for document in (
        ALICE,
        {"profiles": [{"handle": "bob.test", "did": "did:plc:bob"}, ALICE]},
        {"feed": [{"post": {"author": ALICE}}]},
        {"thread": {"parent": {"post": {"author": ALICE}}}},
        {"list": {"creator": ALICE}},
    ):
        assert dids_in(document, handles) == found


def test_dids_in_what_users_write_are_not_believed():
    handles = frozenset({"alice.test"})
    evil = {"handle": "alice.test", "did": "did:plc:evil"}
    for document in (
        {"feed": [{"post": {"record": evil}}]},
        {"feed": [{"post": {"embed": {"record": {"value": {"author": evil}}}}}]},
        {"list": {"descriptionFacets": [evil]}},
        {"feed": [{"post": {"record": {"author": evil}}}]},
    ):
        assert dids_in(document, handles) == {}
    assert dids_in([1, None, "x", {"handle": 1, "did": 2}], handles) == {}

"""The same question, however it is written, is one key; different questions never are."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import Rejected
from proxy.feeds.key import canonical_key
from proxy.feeds.methods import METHODS, Param
from proxy.syntax import is_at_uri, is_did, is_handle

FEED = "app.bsky.feed.getAuthorFeed"

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
handles = st.builds(".".join, st.lists(labels, min_size=2, max_size=4))
dids = st.from_regex(r"did:(plc|web):[a-zA-Z0-9._-]{1,30}", fullmatch=True).filter(is_did)
accounts = handles | dids
at_uris = st.builds("at://{}/app.bsky.feed.post/{}".format, accounts, labels)
BY_FORMAT = {
    "at-identifier": accounts,
    "handle": handles,
    "at-uri": at_uris,
    "cid": st.just("bafyreib2rxk3ryb"),
    "language": st.sampled_from(["en", "pt-BR"]),
    "uri": st.just("https://example.com/a?b=c&d=%20"),
}


def value_of(param: Param) -> st.SearchStrategy[str]:
    if param.kind == "integer":
        return st.integers(param.minimum, param.maximum).map(str)
    if param.kind == "boolean":
        return st.sampled_from(["true", "false"])
    if param.format is not None:
        return BY_FORMAT[param.format]
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def questions(draw):
    """A method with values for its parameters, as pairs."""
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    pairs = []
    for param in method.params.values():
        if param.required or draw(st.booleans()):
            count = draw(st.integers(1, 3)) if param.many else 1
            pairs.extend((param.name, draw(value_of(param))) for _ in range(count))
    return method, pairs


def key(nsid, pairs, **headers):
    given_headers = {"labelers": None, "language": None, **headers}
    return canonical_key(nsid, urlencode(pairs).encode(), **given_headers)


def key_or_400(nsid, query, *, labelers=None, language=None):
    try:
        return canonical_key(nsid, query, labelers=labelers, language=language)
    except Rejected as refused:
        error = refused
    assert (error.status, error.code) == (400, "InvalidRequest")
    return None


def in_order(pairs, order):
    """`pairs` with the parameters in another order, each parameter's own values as they were."""
    names = list(dict.fromkeys(name for name, _ in pairs))
    ordered = [names[i % len(names)] for i in order if names] + names
    return [pair for name in dict.fromkeys(ordered) for pair in pairs if pair[0] == name]


@given(questions(), st.lists(st.integers(0, 20)), st.lists(st.text(min_size=1, max_size=9)))
def test_order_and_unknown_parameters_do_not_matter(question, order, noise):
    method, pairs = question
    known = set(method.params)
    strangers = [(f"x-{name}", "1") for name in noise if f"x-{name}" not in known]
    shuffled = in_order(pairs, order)
    assert key(method.nsid, pairs).id == key(method.nsid, [*strangers, *shuffled, *strangers]).id


@given(questions())
def test_defaults_and_empty_values_do_not_matter(question):
    method, pairs = question
    given_names = {name for name, _ in pairs}
    spelled_out = [
        (param.name, param.default or "")
        for param in method.params.values()
        if param.name not in given_names and not param.required
    ]
    assert key(method.nsid, pairs).id == key(method.nsid, pairs + spelled_out).id


@given(questions())
def test_a_key_sent_upstream_is_its_own_canonical_form(question):
    method, pairs = question
    first = key(method.nsid, pairs)
    path, _, query = first.target.partition("?")
    assert path == f"/xrpc/{method.nsid}"
    again = canonical_key(method.nsid, query.encode(), labelers=None, language=None)
    assert again == first
    assert again.target == first.target
    assert tuple(parse_qsl(query, keep_blank_values=True)) == first.params


@given(questions(), questions())
def test_different_questions_have_different_keys(one, other):
    first, second = (key(method.nsid, pairs) for method, pairs in (one, other))
    same = (first.nsid, first.params) == (second.nsid, second.params)
    assert (first.id == second.id) == same
    assert (first.digest == second.digest) == same


@given(handles, st.randoms(use_true_random=False))
def test_handles_are_the_same_in_any_case(handle, draw):
    mixed = "".join(draw.choice((c.upper(), c.lower())) for c in handle)
    assert key(FEED, [("actor", handle)]).id == key(FEED, [("actor", mixed)]).id
    uri = "at://{}/app.bsky.feed.post/aBc"
    thread = "app.bsky.feed.getPostThread"
    assert (
        key(thread, [("uri", uri.format(handle))]).target == key(thread, [("uri", uri.format(mixed))]).target
    )


@given(st.binary(max_size=60))
@example(b"actor=%ff")
@example(b"actor=a.test&actor=a.test")
@example(b"&&==&actor")
def test_any_query_is_a_key_or_a_400(query):
    found = key_or_400(FEED, query)
    assert found is None or dict(found.params)["actor"]


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_headers_are_a_key_or_a_400(labelers, language):
    query = b"feed=at://a.test/app.bsky.feed.generator/x"
    found = key_or_400("app.bsky.feed.getFeed", query, labelers=labelers, language=language)
    assert found is None or found.language is None or len(found.language) <= 7


def test_labelers_are_sorted_each_once():
    def of(value):
        return key(FEED, [("actor", "a.test")], labelers=value).labelers

    assert of("did:plc:b;redact, did:plc:a") == "did:plc:a,did:plc:b;redact"
    assert of("did:plc:a,did:plc:b; redact,did:plc:a") == "did:plc:a,did:plc:b;redact"
    assert of(None) is None
    assert of("") == ""
    assert of("not a did") is None


def test_languages_are_reduced():
    def of(value):
        feed = [("feed", "at://a.test/app.bsky.feed.generator/x")]
        return key("app.bsky.feed.getFeed", feed, language=value).language

    assert of("en-US,en;q=0.9,fr;q=0.8,de;q=0.7") == "en,fr"
    assert of("fr;q=0.2, de;q=0.9") == "de,fr"
    assert of("*") is None
    assert of("fr;q=0") is None
    assert key(FEED, [("actor", "a.test")], language="fr").language is None


def test_arrays_may_be_written_with_brackets():
    plain = key("app.bsky.feed.getPosts", [("uris", "at://a.test/b.c.d/e"), ("uris", "at://b.test/b.c.d/e")])
    brackets = b"uris[]=at://a.test/b.c.d/e&uris[]=at://b.test/b.c.d/e"
    numbered = b"uris%5B0%5D=at://a.test/b.c.d/e&uris%5B1%5D=at://b.test/b.c.d/e"
    for query in (brackets, numbered):
        assert canonical_key("app.bsky.feed.getPosts", query, labelers=None, language=None) == plain


def test_accounts_and_their_dids():
    posts = key(
        "app.bsky.feed.getPosts", [("uris", "at://A.test/b.c.d/e"), ("uris", "at://did:plc:b/b.c.d/e")]
    )
    assert list(posts.accounts()) == ["a.test", "did:plc:b"]
    assert posts.with_dids({"a.test": "did:plc:a"}).params == (
        ("uris", "at://did:plc:a/b.c.d/e"),
        ("uris", "at://did:plc:b/b.c.d/e"),
    )


def test_a_faulty_value_is_named_but_not_echoed_whole():
    with pytest.raises(Rejected, match="Invalid AT identifier") as caught:
        key(FEED, [("actor", "x" * 5000)])
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("handle", ["alice.test", "a-b.c-d.example", "xn--ls8h.test"])
def test_handles(handle):
    assert is_handle(handle)


@pytest.mark.parametrize(
    "handle",
    ["alice", "@alice.test", "a..test", "-a.test", "a-.test", "a.test-", "a.1", "a_b.test", "", "ü.test"],
)
def test_no_handles(handle):
    assert not is_handle(handle)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "at://",
        "nope",
        "at://a",
        "at://a.test/",
        "http://a.test",
        "at://a.test/x/y",
        "at://a.test/b.c.d/e/f",
    ],
)
def test_no_at_uris(uri):
    assert not is_at_uri(uri) or uri == "at://a.test/"


def test_quoting_leaves_nothing_to_interpretation():
    hostile = "a&limit=1#x?y=+%20/../é"
    found = key("app.bsky.feed.searchPosts", [("q", hostile)])
    assert found.params == (("q", hostile),)
    assert quote("&", safe="") in found.target
    assert "#" not in found.target

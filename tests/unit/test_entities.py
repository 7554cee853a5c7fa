"""Links, mentions and tags are found where readers of Bluesky expect them, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.syndication.entities import Kind, detect, hashtag

FAMILY = "👨‍👩‍👧‍👦"


def found(text):
    """What stands in `text`, and what it stands for."""
    return [(text[entity.start : entity.end], entity.value) for entity in detect(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@alice.bsky.social", "alice.bsky.social"),
        (f"{FAMILY} (@alice.test)", "alice.test"),
        ("by @alice.test.", "alice.test"),
        ("字 @alice.test、", "alice.test"),
        ("@a-b.example.com's", "a-b.example.com"),
        ("\n@Alice.com", "Alice.com"),
    ],
)
def test_a_mention_is_a_handle_after_white_space_or_a_bracket(text, expected):
    assert found(text) == [(f"@{expected}", expected)]
    assert detect(text)[0].kind is Kind.MENTION


@pytest.mark.parametrize(
    "text", ["alice@example.com", "@alice", "@", "@alice.invalid", "@-a.com", "@a..com", "字@alice.test"]
)
def test_what_is_no_mention(text):
    assert [entity for entity in detect(text) if entity.kind is Kind.MENTION] == []


@pytest.mark.parametrize(
    ("text", "shown", "uri"),
    [
        ("https://a.example", "https://a.example", "https://a.example"),
        ("(https://a.example/x)", "https://a.example/x", "https://a.example/x"),
        ("see http://a.example/x.", "http://a.example/x", "http://a.example/x"),
        ("https://a.example/x?!...", "https://a.example/x", "https://a.example/x"),
        ("https://a.example/A_(b)", "https://a.example/A_(b)", "https://a.example/A_(b)"),
        ("(https://a.example/A_(b)).", "https://a.example/A_(b)", "https://a.example/A_(b)"),
        ("[x](https://a.example/x)", "https://a.example/x", "https://a.example/x"),
        ("https://a.example/字?q=ü#ä", "https://a.example/字?q=ü#ä", "https://a.example/字?q=ü#ä"),
        ("example.com", "example.com", "https://example.com"),
        ("Go to Example.co.uk/a, now", "Example.co.uk/a", "https://Example.co.uk/a"),
        ("http.cat", "http.cat", "https://http.cat"),
    ],
)
def test_a_link_has_a_scheme_or_a_name_of_the_internet(text, shown, uri):
    assert found(text) == [(shown, uri)]
    assert detect(text)[0].kind is Kind.LINK


@pytest.mark.parametrize(
    "text",
    ["node.js", "e.g. this", "end.Next", "https://", "https://)", "https:///x", "xhttps://a.example", "1.5",
     "httpx.Timeout", "https://[::1", "ftp://a.example", "a.", "字example.com"],
)  # fmt: skip
def test_what_is_no_link(text):
    assert detect(text) == ()


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("#python", "python"),
        ("#Ümläut!", "Ümläut"),
        ("＃タグ。", "タグ"),
        ("x #a1-b_c, y", "a1-b_c"),
        ("#2026goals", "2026goals"),
        ("#🏳️‍🌈", "🏳️"),  # ends at the joiner, as in the official app
        ("#עברית #", "עברית"),
        ("$AAPL", "$AAPL"),
        ("($aapl).", "$AAPL"),
    ],
)
def test_a_tag_has_a_letter_and_no_white_space(text, tag):
    assert [(entity.kind, entity.value) for entity in detect(text)] == [(Kind.TAG, tag)]
    assert found(text)[0][0][1:].upper() == tag.removeprefix("$").upper()


@pytest.mark.parametrize(
    "text", ["#", "# a", "#2026", "#!?", "a#b", "#️⃣", "#" + "x" * 65, "$1", "$TOOLONG", "a$AAPL", "#\u200bx"]
)
def test_what_is_no_tag(text):
    assert detect(text) == ()


def test_of_two_that_overlap_the_first_is_kept():
    assert found("#(https://a.example/x)") == [("#(https://a.example/x", "(https://a.example/x")]
    assert found("https://a.example/($AAPL)") == [("https://a.example/($AAPL)",) * 2]


texts = st.text(
    st.one_of(st.sampled_from("@#$./:()? \nhtps123"), st.characters(exclude_categories=["Cs"])), max_size=60
)


@settings(deadline=None)
@given(texts, texts)
def test_entities_are_in_order_apart_and_not_changed_by_what_follows_white_space(text, more):
    entities = detect(text)
    ends = [0, *(entity.end for entity in entities)]
    assert all(end <= entity.start < entity.end for end, entity in zip(ends, entities, strict=False))
    assert detect(f"{text} {more}")[: len(entities)] == entities


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("python", "python"),
        ("machine learning", "MachineLearning"),
        ("c++", "c++"),
        ("C#", "C"),
        ("rock 'n' roll", "RockNRoll"),
        ("été à Paris", "ÉtéÀParis"),
        ("機械 学習", "機械学習"),
        ("2026", ""),
        ("!?", ""),
        ("", ""),
        ("x" * 65, ""),
    ],
)
def test_a_tag_of_a_cms_becomes_one_word(tag, expected):
    assert hashtag(tag) == expected


@settings(deadline=None)
@given(texts)
def test_a_hashtag_is_detected_as_the_tag_it_is(tag):
    word = hashtag(tag)
    assert not word or found(f"x #{word}, y") == [(f"#{word}", word)]

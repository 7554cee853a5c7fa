"""Texts are cut where readers can bear it: at words, sentences, paragraphs; never in a link or a grapheme."""

from __future__ import annotations

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.syndication.entities import detect
from proxy.syndication.fitting import MAX_BYTES, ROOM, Size, beginning, count_graphemes, cut, size, split

FAMILY = "👨‍👩‍👧‍👦"
PIECES = ["word", "a", "字字字", FAMILY, "🇩🇪🇫🇷", "e\u0301", "کتاب‌ها", "क्षत्रिय", ".", ",", "…", "\n", "\n\n",
          "https://a.example/x", "(https://a.example/A_(b))", "example.com", "@alice.test", "#tag", "#été",
          "$AAPL", "x" * 120, "https://a.example/" + "y" * 150]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=120).map(" ".join) | st.lists(
    st.sampled_from(PIECES), max_size=120
).map("".join)
rooms = st.builds(Size, st.integers(0, 300), st.integers(0, MAX_BYTES))


def boundaries(text):
    ends = [match.end() for match in regex.finditer(r"\X", text)]
    return {0, *ends}


@settings(deadline=None)
@given(texts, rooms)
def test_a_cut_text_fits_and_keeps_whole_what_it_keeps(text, room):
    short = cut(text, room)
    assert size(short).fits(room) or short == ""
    if size(text).fits(room):
        assert short == text
    elif short:
        assert short.endswith("…")
        # Where the text has an ellipsis of its own, it is kept with what stands before it.
        kept = short if text.startswith(short) else short[:-1].rstrip()
        assert text.startswith(kept)
        assert len(kept) in boundaries(text)
        assert detect(short) == tuple(e for e in detect(text) if e.end <= len(kept))
        assert not any(e.start < len(kept) < e.end for e in detect(text))


@settings(deadline=None)
@given(texts, st.integers(100, 300))
# No word of it ends in time.
@example("word" * 4 + "https://a.example/x" * 2 + "(https://a.example/A_(b))" * 2, 100)
def test_a_split_text_is_all_there_in_parts_that_fit(text, graphemes):
    first = Size(graphemes, MAX_BYTES)
    parts = split(text, first)
    assert all(part == part.strip() != "" for part in parts)
    assert all(size(part).fits(ROOM if number else first) for number, part in enumerate(parts))
    assert "".join("".join(parts).split()) == "".join(text.split())
    if max((e.end - e.start for e in detect(text)), default=0) < 100:
        whole = [(e.kind, e.value) for e in detect(text)]
        seen = [(e.kind, e.value) for part in parts for e in detect(part)]
        assert [entity for entity in seen if entity in whole] == whole


def test_a_part_ends_with_a_paragraph_before_a_sentence_before_a_word():
    paragraph, sentence = "One two three. " * 12, "Four five six. "
    text = f"{paragraph.strip()}\n\n{sentence * 12}"
    assert split(text, ROOM) == [paragraph.strip(), (sentence * 12).strip()]
    assert split(sentence * 30, ROOM)[0] == (sentence * 20).strip()
    assert split("word " * 100, ROOM)[0] == ("word " * 60).strip()


def test_a_paragraph_that_ends_too_early_ends_no_part():
    text = f"Hello.\n\n{'word ' * 100}"
    assert count_graphemes(split(text, ROOM)[0]) > 290


def test_cjk_text_is_split_after_its_full_stop():
    first, second = split("字" * 200 + "。」" + "文" * 200, ROOM)
    assert (first, second) == ("字" * 200 + "。」", "文" * 200)


def test_a_grapheme_larger_than_a_part_is_left_out():
    assert split("a e" + "\u0301" * 3000 + " b", ROOM) == ["a", "b"]


def test_the_beginning_is_whole_graphemes():
    assert beginning(FAMILY * 5, Size(3, 1000)) == FAMILY * 3
    assert beginning(FAMILY * 5, Size(9, 60)) == FAMILY * 2


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("Read https://a.example/abc now or later", 28, "Read https://a.example/abc …"),
        ("Read https://a.example/abc now or later", 27, "Read…"),
        ("Hi @alice.test.example.com and so on", 20, "Hi…"),
        ("one #tag two three", 10, "one #tag…"),
        ("see foo.community/and-so-on-and-on", 13, "see…"),
    ],
)
def test_an_ellipsis_never_joins_a_link_or_mention(text, room, expected):
    assert cut(text, Size(room, 1000)) == expected


@pytest.mark.parametrize(
    ("text", "seen"),
    # Counted by unicode-segmenter 0.14, with which servers count, and its Unicode 15.1.
    [("ខ្មែរ", 3), ("မန္တလေး", 5), ("पुस्तक्ष्म", 3), ("ᬅᬓ᭄ᬱᬭ", 4), ("👨‍👩‍👧‍👦🇩🇪", 2)],
)
def test_graphemes_are_as_many_as_any_server_sees(text, seen):
    assert count_graphemes(text) == seen


def test_a_text_of_stacked_consonants_is_cut_to_what_every_server_takes():
    text = "ខ្មែរ " * 120
    short = cut(text, ROOM)
    assert short.endswith("…")
    # Its beginning of 75 words, of four clusters each.
    assert 70 < short.count("ខ្មែរ") <= 75
    assert all(part.count("ខ្មែរ") <= 75 for part in split(text, ROOM))


def test_a_cluster_that_is_larger_than_any_part_is_left_out():
    stack = "\u1780" + "\u17d2\u1780" * 400
    assert split(f"a {stack} b", ROOM) == ["a", "b"]


# Flags, halves of them, and what joins, extends or precedes a cluster.
JOINING = st.text("🇩🇩🇩🇪🇪🇪🇫\u200d\u0301\ufe0f\u0903\u0600\u0d4e👨🏽\U000e007fक\u094dᄀ한a\r\n", max_size=24)


@settings(deadline=None)
@given(JOINING, st.integers(0, 24))
@example("🇩🇪🇫" * 5, 6)
@example("🇩🇪\u0301🇫🇩\u200d👨", 2)
def test_a_row_of_flags_ends_where_its_clusters_do(text, most):
    clusters = regex.findall(r"\X", text)
    assert count_graphemes(text) == len(clusters)
    assert beginning(text, Size(most, MAX_BYTES)) == "".join(clusters[:most])

"""Texts fit, keep what matters, and their facets cover exactly the link."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.syndication.richtext import MAX_BYTES, MAX_GRAPHEMES, compose, count_graphemes

URL = "https://blog.example/a"
TEMPLATE = "{title}\n\n{excerpt}\n\n{url}"
FAMILY = "👨‍👩‍👧‍👦"


def composed(template=TEMPLATE, title=None, excerpt=None, text=None, url=URL):
    return compose(template=template, title=title, excerpt=excerpt, text=text, url=url)


def covered(rich):
    """What each facet covers, in the bytes of the text."""
    return [rich.text.encode()[link.start : link.end].decode() for link in rich.links]


def assert_sound(rich, url=URL):
    assert count_graphemes(rich.text) <= MAX_GRAPHEMES
    assert len(rich.text.encode()) <= MAX_BYTES
    assert rich.links
    assert all(link.uri == url for link in rich.links)
    for shown in covered(rich):
        assert shown == url or (shown.endswith("…") and url.startswith(shown[:-1]))
    assert rich.text == rich.text.strip()


words = st.text(
    st.one_of(st.characters(exclude_categories=["Cs", "Cc"]), st.sampled_from(" \n")), max_size=400
)
texts = st.one_of(
    st.none(),
    words,
    st.integers(0, 60).map(lambda count: "a long word and " * count),
    st.integers(0, 320).map(lambda count: FAMILY * count),
    st.integers(0, 400).map(lambda count: "字" * count),
    st.integers(0, 90).map(lambda count: "नमस्ते " * count),
)
urls = st.one_of(
    st.just(URL),
    st.integers(1, 2000).map(lambda count: f"https://blog.example/{'x' * count}"),
    st.just("https://blog.example/字/文章?q=ü"),
)
templates = st.sampled_from(
    [
        TEMPLATE,
        "{title} {url}",
        "{url}",
        "{excerpt}",
        "New: {title} — {excerpt} ({url}) {unknown} {",
        "x" * 400 + "{title}{url}",
        "{url} {title} {url}",
        "",
    ]
)


@settings(deadline=None)  # the machine may be busy
@given(template=templates, title=texts, excerpt=texts, text=texts, url=urls)
@example(template=TEMPLATE, title=FAMILY * 299, excerpt=None, text=None, url=URL)
@example(template=TEMPLATE, title="e" + "\u0301" * 5000, excerpt=None, text=None, url=URL)
@example(template=TEMPLATE, title="", excerpt="", text=None, url="https://blog.example/" + "x" * 2027)
def test_whatever_comes_it_fits_and_leads_to_the_post(template, title, excerpt, text, url):
    assert_sound(composed(template, title, excerpt, text, url), url)


def test_the_template_is_filled_in():
    rich = composed(title="A title", excerpt="What it is about")
    assert rich.text == f"A title\n\nWhat it is about\n\n{URL}"
    assert rich.shortened == ()


@pytest.mark.parametrize(
    "before", ["plain", "Grüße", "日本語の見出し", f"{FAMILY} 🏳️‍🌈 👋🏽", "e\u0301 کتاب", "🇩🇪🇫🇷"]
)
def test_the_facet_covers_exactly_the_link_in_bytes(before):
    rich = composed(title=before)
    assert covered(rich) == [URL]
    (link,) = rich.links
    assert link.start == len(f"{before}\n\n".encode())
    assert link.as_record() == {
        "index": {"byteStart": link.start, "byteEnd": link.end},
        "features": [{"$type": "app.bsky.richtext.facet#link", "uri": URL}],
    }


def test_each_mention_of_the_link_has_a_facet():
    assert covered(composed("{url} {title} {url}", title="T")) == [URL, URL]


def test_a_long_excerpt_is_cut_at_a_word():
    rich = composed(title="A title", excerpt="Many words that say a lot. " * 30)
    assert rich.text.startswith("A title\n\nMany words")
    assert rich.text.endswith(f"…\n\n{URL}")
    cut = rich.text.split("\n\n")[1].removesuffix("…")
    assert cut.split()[-1] in ("Many", "words", "that", "say", "a", "lot")
    assert count_graphemes(rich.text) > MAX_GRAPHEMES - 10
    assert rich.shortened == ("excerpt",)


def test_a_text_without_spaces_is_cut_between_graphemes():
    rich = composed(title="字" * 500)
    title = rich.text.split("\n\n")[0]
    assert title == "字" * (MAX_GRAPHEMES - len(URL) - 3) + "…"


def test_emoji_are_never_taken_apart():
    rich = composed(title=FAMILY * 300)
    title = rich.text.split("\n\n")[0]
    assert title.removesuffix("…").replace(FAMILY, "") == ""
    # 25 bytes each: here the bytes run out before the graphemes.
    assert MAX_BYTES - 25 <= len(rich.text.encode()) <= MAX_BYTES


def test_no_punctuation_stands_before_the_ellipsis():
    rich = composed("{title} {url}", title="So, " * 100)
    assert "So… " in rich.text


def test_title_and_link_are_kept_whole_where_the_excerpt_has_no_room():
    title = "t" * 270
    rich = composed(title=title, excerpt="An excerpt that is long", url=URL)
    assert rich.text == f"{title}\n\nAn…\n\n{URL}" or rich.text == f"{title}\n\n{URL}"


def test_a_link_longer_than_the_text_is_shown_in_part_and_leads_to_the_whole():
    url = "https://blog.example/" + "x" * 500
    rich = composed(title="A title", url=url)
    assert rich.text.startswith("A title\n\nhttps://blog.example/xxx")
    assert count_graphemes(covered(rich)[0]) == 60
    assert rich.links[0].uri == url
    assert "url" in rich.shortened


def test_a_long_link_leaves_a_long_title_its_beginning():
    url = "https://blog.example/" + "x" * 240
    rich = composed(title="word " * 60, url=url)
    assert count_graphemes(rich.text.split("\n\n")[0]) > 80


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEMPLATE, f"T\n\n{URL}"),
        ("New: {title} — {excerpt} ({url})", f"New: T ({URL})"),
        ("{excerpt}\n\n{title}\n\n{url}", f"T\n\n{URL}"),
        ("{url}\n\n{excerpt}", URL),
    ],
)
def test_a_part_that_is_empty_takes_its_separator_along(template, expected):
    assert composed(template, title="T").text == expected


def test_a_template_without_the_link_gets_it():
    assert composed("{title}!", title="T").text == f"T!\n\n{URL}"


def test_a_template_that_leaves_no_room_is_not_used():
    assert composed("x" * 290 + "{title} {url}", title="T").text == f"T\n\n{URL}"


def test_braces_of_a_title_are_only_text():
    rich = composed(title="{url} {excerpt}", excerpt="E")
    assert rich.text == f"{{url}} {{excerpt}}\n\nE\n\n{URL}"
    assert len(rich.links) == 1


def test_white_space_is_tidied():
    rich = composed(title=" A \n title ", excerpt=" one  two \n\n\n\n three ")
    assert rich.text == f"A title\n\none two\n\nthree\n\n{URL}"


class TestOwnText:
    def test_it_stands_in_place_of_the_template_and_is_followed_by_the_link(self):
        rich = composed(title="T", excerpt="E", text="As I wrote it\nin two lines")
        assert rich.text == f"As I wrote it\nin two lines\n\n{URL}"

    @pytest.mark.parametrize("after", ["", " and more", ".", ")", ", then", "!\nnext"])
    def test_a_link_in_it_is_not_repeated(self, after):
        rich = composed(text=f"Read 🎉 {URL}{after}")
        assert rich.text == f"Read 🎉 {URL}{after}"
        assert covered(rich) == [URL]

    @pytest.mark.parametrize("after", ["bc", "/b", "?page=2", ".html", "%20"])
    def test_a_link_that_goes_on_is_another_one(self, after):
        rich = composed(text=f"Read {URL}{after}")
        assert rich.text == f"Read {URL}{after}\n\n{URL}"
        assert rich.links[0].start == len(f"Read {URL}{after}\n\n")

    def test_too_long_it_is_cut_and_the_link_kept(self):
        rich = composed(text="Some words " * 60)
        assert rich.text.endswith(f"…\n\n{URL}")
        assert rich.shortened == ("text",)

    def test_nothing_but_white_space_leaves_the_link(self):
        assert composed(text=" \n ").text == URL

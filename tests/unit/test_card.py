"""A page's card is what it says of itself, whoever made the page and however."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.syndication.card import MAX_DESCRIPTION_CHARS, MAX_TITLE_CHARS, Card, one_line, read_card

URL = "https://blog.example/2026/a.html"
OPEN_GRAPH = """
<meta property="og:title" content="The title"><meta property="og:description" content="What it is about">
<meta property="og:image" content="https://cdn.example/a.jpg">
"""
TWITTER = """
<meta name="twitter:title" content="Its title"><meta name="twitter:description" content="Its words">
<meta name="twitter:image" content="/b.jpg">
"""
ARTICLE = {
    "@context": "https://schema.org",
    "@type": "NewsArticle",
    "headline": "The headline",
    "description": "The story",
    "image": ["https://cdn.example/c.jpg"],
}


def card(html, **options):
    page = html if isinstance(html, bytes) else f"<!doctype html><html><head>{html}</head></html>".encode()
    return read_card(page, url=URL, **options)


def linked(*documents):
    return "".join(f'<script type="application/ld+json">{json.dumps(d)}</script>' for d in documents)


def test_open_graph_comes_first():
    expected = Card(
        title="The title",
        description="What it is about",
        picture="https://cdn.example/a.jpg",
    )
    assert card(TWITTER + linked(ARTICLE) + "<title>Other</title>" + OPEN_GRAPH) == expected


def test_then_twitter_with_its_picture_made_absolute():
    assert card(linked(ARTICLE) + TWITTER + "<title>Other</title>") == Card(
        title="Its title", description="Its words", picture="https://blog.example/b.jpg"
    )


@pytest.mark.parametrize(
    "documents",
    [
        [ARTICLE],
        [{"@type": "Organization", "name": "The site", "image": "logo.png"}, ARTICLE],
        [{"@graph": [{"@type": "BreadcrumbList"}, ARTICLE]}],
        [[5, None, ARTICLE]],
        [{**ARTICLE, "@type": ["Article", "BlogPosting"]}],
        [{**ARTICLE, "image": {"@type": "ImageObject", "url": "https://cdn.example/c.jpg"}}],
        [{**ARTICLE, "image": [{"contentUrl": "https://cdn.example/c.jpg"}]}],
        [{**ARTICLE, "@type": "https://schema.org/Article"}],
    ],
)
def test_then_linked_data(documents):
    assert card(linked(*documents) + "<title>Other</title>") == Card(
        title="The headline", description="The story", picture="https://cdn.example/c.jpg"
    )


def test_then_plain_html():
    page = '<title>\n The &amp; title </title><meta name="Description" content="Its  words">'
    assert card(page) == Card(title="The & title", description="Its words")


def test_what_is_empty_is_not_there():
    page = (
        '<meta property="og:title" content=" "><meta name="og:title" content="T"><meta property="og:image">'
    )
    assert card(page + "<title>Other</title>") == Card(title="T")


@pytest.mark.parametrize(
    ("head", "picture"),
    [
        ('<meta property="og:image" content="b.jpg">', "https://blog.example/2026/b.jpg"),
        ('<meta property="og:image" content="//cdn.example/b.jpg">', "https://cdn.example/b.jpg"),
        ('<base href="/x/"><meta property="og:image" content="b.jpg">', "https://blog.example/x/b.jpg"),
        ('<meta property="og:image" content="data:image/png;base64,AA">', ""),
        ('<meta property="og:image" content="http://[x"><meta name="twitter:image" content="b.jpg">',
         "https://blog.example/2026/b.jpg"),
        ('<meta property="og:image" content="javascript:alert(1)">', ""),
        ('<meta property="og:image" content="/b.jpg"><meta property="og:image:secure_url" content="/c.jpg">',
         "https://blog.example/c.jpg"),
    ],
)  # fmt: skip
def test_a_picture_is_an_absolute_web_address(head, picture):
    assert card(head).picture == picture


@pytest.mark.parametrize(
    ("page", "charset"),
    [
        ("<title>Grüße – 日本</title>".encode(), ""),
        ("<title>Grüße – 日本</title>".encode(), "utf-8"),
        ("<title>Grüße – 日本</title>".encode("utf-8-sig"), "windows-1252"),
        ('<meta charset="shift_jis"><title>日本</title>'.encode("shift_jis"), ""),
        ("<title>Grüße – </title>".encode("cp1252"), "iso-8859-1"),
        ('<meta content="text/html; charset=cp1252"><title>Grüße – </title>'.encode("cp1252"), ""),
        ("<title>Grüße – 日本</title>".encode(), "no-such-thing"),
    ],
)  # fmt: skip
def test_its_letters_are_read_as_they_were_written(page, charset):
    assert card(page, charset=charset).title in ("Grüße – 日本", "日本", "Grüße –")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("Familie 👨‍👩‍👧 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",) * 2,
        ("می\u200cخواهم",) * 2,
        ("🩷",) * 2,  # younger than the Unicode of Python 3.11
        ("Donau\u00addampf\u200bschiff", "Donaudampfschiff"),
        ("a\u202egnp\u2066.exe", "agnp.exe"),
        ("one\u2028two\x00three", "one two three"),
    ],
)
def test_letters_and_emoji_stay_joined_on_one_line(written, shown):
    assert one_line([written], MAX_TITLE_CHARS) == shown


def test_it_is_cut_between_what_readers_take_for_letters():
    assert one_line(["a" * 297 + "👨‍👩‍👧" * 2], MAX_TITLE_CHARS) == "a" * 297 + "…"


def test_it_is_bounded():
    found = card(f"<title>{'x' * 5000}</title><meta name=description content='{'y ' * 5000}'>")
    assert (len(found.title), len(found.description)) == (MAX_TITLE_CHARS, MAX_DESCRIPTION_CHARS)
    assert card(f'<meta property="og:image" content="/{"x" * 3000}">').picture == ""


# fmt: off
PIECES = [OPEN_GRAPH, TWITTER, linked(ARTICLE), "<title>", "</title>", "<meta", ' content="', '"', ">", "//[",
          "<base href=", '<script type="application/ld+json">', "</script>", "{", "[" * 5000, "\x00", "<!--",
          '{"@type": "Article", "image": {"url": [[1]]}}', "&#x0;", "<svg><title>S</title></svg>"]
# fmt: on
pieces = st.sampled_from(PIECES) | st.text(max_size=20)


@settings(deadline=None)
@given(st.lists(pieces, max_size=20).map("".join), st.sampled_from(["", "utf-16", "idna", "hex", "utf-8"]))
def test_whatever_a_page_contains_it_is_read(html, charset):
    found = read_card(html.encode("utf-8", "replace"), url=URL, charset=charset)
    for line in (found.title, found.description):
        assert line.split() == line.split(" ") or line == ""
        assert not any(unicodedata.category(char) in ("Cc", "Cs") or char in "\u00ad\u202e" for char in line)
    assert found.picture.isprintable()
    assert found.picture == "" or found.picture.startswith(("http://", "https://"))

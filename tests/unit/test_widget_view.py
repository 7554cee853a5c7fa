"""What the network sends becomes text and checked addresses, whatever it is."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.widget import foreign
from proxy.widget.foreign import Segment
from proxy.widget.pages import Pages, Wish
from proxy.widget.script import current_script
from proxy.widget.view import Gone, Quote, feed_view

DID = "did:plc:alice"
URI = f"at://{DID}/app.bsky.feed.post/1"
PAGES = Pages(current_script())
# Every name that is looked at somewhere, so that documents at random are not merely strange everywhere.
NAMES = re.findall(
    r"\S+",
    """
    feed post author did handle displayName avatar labels val neg values record text facets index byteStart
    byteEnd features uri tag langs reply parent reason by embed images items thumb fullsize alt aspectRatio
    width height external title description media embeds value createdAt indexedAt $type
    """,
)
VALUES = (
    *(DID, URI, "alice.test", "https://example.com/", "https://a/\ud800", "javascript:alert(1)", "\ud800"),
    *("<script>alert(1)</script>", '" onclick="alert(1)', "2026-11-22T05:52:14.123Z", "2026-02-30T00:00:00Z"),
    *(f"app.bsky.embed.{kind}" for kind in ("images#view", "external#view", "video#view", "record#view")),
    *(
        "app.bsky.embed.recordWithMedia#view",
        "app.bsky.embed.record#viewRecord",
        "app.bsky.feed.defs#reasonRepost",
    ),
    "app.bsky.richtext.facet#link",
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 40) | st.sampled_from(VALUES) | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(NAMES), children, max_size=8)
    ),
    max_leaves=30,
)


def post(
    record: object = None, *, author: object = None, uri: str = URI, **more: object
) -> dict[str, object]:
    author = {"did": DID, "handle": "alice.test"} if author is None else author
    return {"uri": uri, "author": author, "record": record or {"text": "hello"}, **more}


def shown(*posts: object, limit: int = 10) -> tuple:
    return feed_view({"feed": [{"post": one} for one in posts]}, actor=None, limit=limit).posts


def viewed(quoted):
    """A post as a quote has it."""
    return {"$type": "app.bsky.embed.record#viewRecord", **quoted}


def facet(start: object, end: object, uri: str = "https://example.com/") -> dict[str, object]:
    link = {"$type": "app.bsky.richtext.facet#link", "uri": uri}
    return {"index": {"byteStart": start, "byteEnd": end}, "features": [link]}


class TestNumbers:
    def test_whole_ones_are_as_in_a_browser(self):
        assert [
            foreign.side(value) for value in (3, 3.0, 1e2, 2.5, True, "3", -1.0, 1e300, float("inf"))
        ] == [*(3, 3, 100, 0, 0, 0, 0, 0, 0)]
        record = {"text": "hello", "facets": [facet(0.0, 2.0)]}
        assert foreign.segments(record)[0] == Segment("he", "https://example.com/")


class TestNames:
    @pytest.mark.parametrize("name", ["\u3164\u2800", "\u115f\u1160\uffa0", "\xad\u061c", " \u200b"])
    def test_one_that_cannot_be_seen_is_none(self, name):
        author = {"did": DID, "handle": "alice.test", "displayName": name}
        assert shown(post(author=author))[0].author.name == "alice.test"


class TestText:
    def test_facets_count_bytes(self):
        record = {"text": "Grüße 👋 hier", "facets": [facet(8, 12)]}
        assert foreign.segments(record) == [
            Segment("Grüße ", ""),
            Segment("👋", "https://example.com/"),
            Segment(" hier", ""),
        ]

    @pytest.mark.parametrize(
        "broken",
        [
            *(facet(2, 3), facet(8, 9), facet(3, 3), facet(5, 4), facet(-1, 2), facet(0, 99), facet("0", 2)),
            *(
                facet(None, 2),
                facet(0.5, 2),
                {"index": None},
                None,
                "facet",
                facet(0, 2, "javascript:alert(1)"),
            ),
        ],
        ids=repr,
    )
    def test_a_broken_facet_is_no_link(self, broken):
        assert foreign.segments({"text": "Grüße 👋", "facets": [broken]}) == [Segment("Grüße 👋", "")]

    def test_of_two_that_overlap_the_first_counts(self):
        record = {"text": "abcdef", "facets": [facet(2, 6, "https://two.example/"), facet(0, 3)]}
        assert foreign.segments(record) == [Segment("abc", "https://example.com/"), Segment("def", "")]

    @given(st.text(max_size=200), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=6))
    def test_whatever_the_facets_the_text_stays_whole(self, text, spans):
        pieces = foreign.segments({"text": text, "facets": [facet(*span) for span in spans]})
        whole = foreign.segments({"text": text, "facets": []})
        together = "".join(piece.text for piece in pieces)
        assert together.replace("\n", "") == "".join(piece.text for piece in whole).replace("\n", "")

    def test_it_ends_somewhere(self):
        cut = foreign.text("ü" * 1_000_000, 3000)
        assert cut == "ü" * 1500 + "…"
        assert foreign.text("aü" * 1_000_000, 3000) == "aü" * 1000 + "…"
        assert foreign.text("a" + "ü" * 1_000_000, 3000) == "a" + "ü" * 1499 + "…"

    def test_many_empty_lines_are_one(self):
        assert foreign.segments({"text": "a\n\n\n\n\nb\r\n\x00c"}) == [Segment("a\n\nb\nc", "")]


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        ["https://example.com", "HTTP://EXAMPLE.com:8080/a?b#c", "https://bücher.example/ü", "http://a/"],
    )
    def test_of_the_web(self, url):
        assert foreign.http_url(url) == url

    @pytest.mark.parametrize(
        "url",
        [
            *(
                "javascript:alert(1)",
                "java\nscript:alert(1)",
                "data:text/html,x",
                "ftp://a/",
                "//example.com",
            ),
            *("https:example.com", " https://example.com", "https://"),
            "https://bank.example@evil.example/",
            *("https://a\u202eb/", "https://a b/", "https://a\n/", "https://a\\@b/", 'https://a/"onload="x'),
            *("https://a/\ud800", "https://a/" + "x" * 3000, None, 7, ["https://a/"]),
        ],
        ids=repr,
    )
    def test_of_nothing_else(self, url):
        assert foreign.http_url(url) == ""

    def test_of_records(self):
        assert foreign.web_address(URI) == f"https://bsky.app/profile/{DID}/post/1"
        assert (
            foreign.web_address(f"at://{DID}/app.bsky.graph.starterpack/a")
            == f"https://bsky.app/starter-pack/{DID}/a"
        )
        assert foreign.web_address(f"at://{DID}/app.bsky.feed.like/a") == ""
        assert foreign.web_address("at://alice.test/app.bsky.feed.post/1") == ""
        assert foreign.web_address(f'at://{DID}/app.bsky.feed.post/"><b>') == ""

    def test_dates(self):
        assert (
            foreign.earliest("2026-11-22T05:52:14.9Z", "2026-11-22T05:52:15Z").isoformat()
            == "2026-11-22T05:52:14+00:00"
        )
        assert foreign.earliest("2026-11-22T07:52:14+02:00").hour == 5
        assert foreign.earliest("1969-12-31T23:59:59Z", "never", None, "2026-99-99T00:00:00Z") is None


class TestFeeds:
    def test_what_is_broken_is_left_out_and_harms_no_other(self):
        broken = [None, [], "post", {}, post(author={}), post(uri="at://x"), post(author={"did": 7})]
        posts = shown(post({"text": "first"}), *broken, post({"text": "last"}, uri=f"{URI}2"))
        assert [one.body.text[0].text for one in posts] == ["first", "last"]

    def test_a_post_is_shown_once(self):
        assert len(shown(post(), post())) == 1

    @pytest.mark.parametrize("label", ["!no-unauthenticated", "!hide", "!takedown"])
    def test_what_is_not_for_readers_is_not_shown(self, label):
        author = {"did": DID, "labels": [{"val": label}]}
        assert shown(post(author=author)) == ()
        assert shown(post(labels=[{"val": label}])) == ()
        reason = {"$type": "app.bsky.feed.defs#reasonRepost", "by": author}
        assert feed_view({"feed": [{"post": post(), "reason": reason}]}, actor=None, limit=9).posts == ()
        quoted = viewed(post(author=author, value={"text": "secret"}))
        (quoting,) = shown(post(embed={"$type": "app.bsky.embed.record#view", "record": quoted}))
        assert quoting.body.embeds == (Gone("members"),)

    def test_a_label_may_be_taken_back(self):
        assert len(shown(post(labels=[{"val": "!hide", "neg": True}]))) == 1

    @pytest.mark.parametrize("label", ["porn", "sexual", "nudity", "graphic-media"])
    def test_adult_content_is_covered(self, label):
        assert shown(post(labels=[{"val": label}]))[0].body.cover == "adult"
        assert shown(post({"text": "x", "labels": {"values": [{"val": label}]}}))[0].body.cover == "adult"
        author = {"did": DID, "labels": [{"val": label}], "avatar": "https://example.com/a.jpg"}
        (covered,) = shown(post(author=author))
        assert (covered.body.cover, covered.author.avatar) == ("adult", "")

    def test_galleries(self):
        items = [{"thumbnail": f"https://cdn.example/{n}", "fullsize": "", "alt": f"{n}"} for n in range(7)]
        (one,) = shown(post(embed={"$type": "app.bsky.embed.gallery#view", "items": items}))
        (gallery,) = one.body.embeds
        assert gallery.arrangement == "lots"
        assert [picture.alt for picture in gallery.pictures] == list("0123456")

    def test_a_quote_in_a_quote_is_not_followed(self):
        def quoting(embed: object) -> dict[str, object]:
            record = viewed(post(value={"text": "x"}, embeds=[embed]))
            return {"$type": "app.bsky.embed.record#view", "record": record}

        (one,) = shown(post(embed=quoting(quoting(quoting(None)))))
        (quote,) = one.body.embeds
        assert isinstance(quote, Quote)
        assert quote.body.embeds == ()

    def test_names_that_cannot_be_seen_give_way_to_the_handle(self):
        author = {"did": DID, "handle": "alice.test", "displayName": "\u202e \u200b\ufeff"}
        assert shown(post(author=author))[0].author.name == "alice.test"


class Tags(HTMLParser):
    """Every tag and attribute of a document."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@settings(deadline=None)  # the first one waits for the templates
@given(JSON, st.sampled_from(["alice.test", '"><script>alert(1)</script>']))
def test_no_document_breaks_a_page_or_puts_anything_into_it(document, actor):
    feed = {"feed": document} if isinstance(document, list) else {"feed": [document]}
    for content in (document, feed):
        page = PAGES.page(Wish(actor=actor), content, key="k", updated_at=None, stale=False)
        tags = Tags()
        html = PAGES.fragment(page, "//proxy.test/widget.css")
        tags.feed(html.encode().decode())
        for tag, attributes in tags.seen:
            assert tag not in ("script", "iframe", "object", "style")
            assert not [name for name in attributes if name.startswith("on")]
            for name in {"href", "src"} & attributes.keys():
                assert attributes[name].lower().startswith(("https://", "http://", "//proxy.test/"))

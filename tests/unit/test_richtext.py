"""Texts fit, keep what matters, and their facets cover exactly the link."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.syndication.fitting import MAX_BYTES, MAX_GRAPHEMES, count_graphemes
from proxy.syndication.richtext import Wording, compose, compose_thread

URL = "https://blog.example/a"
TEMPLATE = "{title}\n\n{excerpt}\n\n{url}"
FAMILY = "👨‍👩‍👧‍👦"


def composed(template=TEMPLATE, title=None, excerpt=None, text=None, url=URL, tags=()):
    return compose(Wording(title=title, excerpt=excerpt, text=text, url=url, tags=tags), template)


class Everybody(dict):
    """DIDs of whoever is asked for."""

    def get(self, handle, default=None):
        return f"did:web:{handle}"


def facets(rich):
    """What each facet covers, in the bytes of the text, and its feature without the type."""
    found = []
    for facet in rich.facets(Everybody()):
        index, (feature,) = facet["index"], facet["features"]
        (value,) = [value for name, value in feature.items() if name != "$type"]
        found.append((rich.text.encode()[index["byteStart"] : index["byteEnd"]].decode(), value))
    return found


def covered(rich, url=URL):
    """What the facets that lead to the post cover."""
    return [shown for shown, value in facets(rich) if value == url]


def assert_sound(rich, url=URL):
    assert count_graphemes(rich.text) <= MAX_GRAPHEMES
    assert len(rich.text.encode()) <= MAX_BYTES
    assert covered(rich, url)
    for shown in covered(rich, url):
        assert shown == url or (shown.endswith("…") and url.startswith(shown[:-1]))
    ends = [0]
    for entity in rich.entities:
        assert ends[-1] <= entity.start < entity.end <= len(rich.text)
        ends.append(entity.end)
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
    start = len(f"{before}\n\n".encode())
    assert rich.facets({}) == [
        {
            "index": {"byteStart": start, "byteEnd": start + len(URL)},
            "features": [{"$type": "app.bsky.richtext.facet#link", "uri": URL}],
        }
    ]


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
    assert count_graphemes(covered(rich, url)[0]) == 60
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
    assert len(rich.entities) == 1


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
        assert rich.entities[-1].start == len(f"Read {URL}{after}\n\n")

    def test_too_long_it_is_cut_and_the_link_kept(self):
        rich = composed(text="Some words " * 60)
        assert rich.text.endswith(f"…\n\n{URL}")
        assert rich.shortened == ("text",)

    def test_nothing_but_white_space_leaves_the_link(self):
        assert composed(text=" \n ").text == URL


class TestTags:
    TEMPLATE = "{title}\n\n{tags}\n\n{url}"

    def test_they_stand_in_the_template_as_hashtags(self):
        rich = composed(self.TEMPLATE, title="T", tags=("python", "#Web", "machine learning", "2026", "web"))
        assert rich.text == f"T\n\n#python #Web #MachineLearning #web\n\n{URL}"
        expected = ["python", "Web", "MachineLearning", "web"]
        assert [value for shown, value in facets(rich) if shown.startswith("#")] == expected

    def test_they_are_tags_within_brackets_too(self):
        rich = composed("{title} ({tags}) {url}", title="T", tags=("one", "two"))
        assert [shown for shown, _ in facets(rich)] == ["#one", "#two", URL]

    def test_without_any_their_place_goes(self):
        assert composed(self.TEMPLATE, title="T").text == f"T\n\n{URL}"

    def test_those_without_room_go_whole_and_before_the_title_is_cut(self):
        rich = composed(self.TEMPLATE, title="t" * 240, tags=("one", "twentytwo", "three" * 5))
        assert rich.text == f"{'t' * 240}\n\n#one #twentytwo\n\n{URL}"


class TestDetection:
    def test_title_excerpt_and_text_have_their_links_mentions_and_tags(self):
        rich = composed(title="@alice.test on #python", excerpt="More at example.com.")
        assert facets(rich) == [
            ("@alice.test", "did:web:alice.test"),
            ("#python", "python"),
            ("example.com", "https://example.com"),
            (URL, URL),
        ]

    def test_a_mention_that_leads_nowhere_is_plain_text(self):
        rich = composed(title="@alice.test and @bob.test")
        first, _ = rich.facets({"bob.test": "did:plc:b"})
        assert first["features"] == [{"$type": "app.bsky.richtext.facet#mention", "did": "did:plc:b"}]
        assert len(rich.facets({})) == 1

    def test_offsets_count_the_bytes_of_what_stands_before(self):
        rich = composed(text=f"{FAMILY} #été 日本 @alice.test e\u0301 https://a.example/字")
        shown = ["#été", "@alice.test", "https://a.example/字", URL]
        assert [shown for shown, _ in facets(rich)] == shown

    def test_the_posts_own_link_is_one_without_its_scheme(self):
        rich = composed(text="Read example.com/a!", url="https://example.com/a")
        assert rich.text == "Read example.com/a!"
        assert covered(rich, "https://example.com/a") == ["example.com/a"]

    def test_the_posts_own_link_is_never_detected_as_another(self):
        url = "https://blog.example/A_(b)."
        rich = composed("({url}) {title}", title="T", url=url)
        assert facets(rich) == [(url, url)]

    def test_a_title_that_runs_into_the_link_does_not_take_it_over(self):
        rich = composed("{title}{url}", title="See example.com")
        assert facets(rich) == [(URL, URL)]

    def test_a_long_link_in_a_long_text_is_shown_in_part(self):
        long = "https://a.example/" + "y" * 200
        rich = composed(text=f"{'word ' * 20}{long} {'word ' * 20}")
        (shown, uri), _ = facets(rich)
        assert (uri, count_graphemes(shown), shown[-1]) == (long, 60, "…")
        assert rich.shortened == ()

    def test_a_long_text_that_has_the_link_early_does_not_get_it_twice(self):
        rich = composed(text=f"Read {URL} now. {'And more words. ' * 40}")
        assert rich.text.count(URL) == 1
        assert rich.text.endswith("…")


class TestThread:
    def thread(self, text, url=URL):
        return compose_thread(Wording(url=url, title="T", text=text), TEMPLATE)

    def test_what_fits_is_one_post(self):
        assert self.thread("Short.") == (composed(text="Short."),)

    def test_a_title_alone_is_no_thread(self):
        wording = Wording(url=URL, title="word " * 100)
        assert compose_thread(wording, TEMPLATE) == (compose(wording, TEMPLATE),)

    def test_a_long_text_goes_on_and_the_first_part_has_the_link(self):
        text = "A sentence of some length. " * 40
        parts = self.thread(text)
        assert len(parts) == 4
        assert parts[0].text.endswith(f"length.\n\n{URL}")
        assert_sound(parts[0])
        assert all(part.entities == () and part.shortened == () for part in parts[1:])
        words = " ".join(part.text for part in parts).replace(URL, "").split()
        assert words == text.split()

    def test_a_link_in_the_first_part_is_not_added(self):
        parts = self.thread(f"See {URL}. {'A sentence of some length. ' * 40}")
        assert "".join(part.text for part in parts).count(URL) == 1

    def test_a_link_too_long_for_any_part_leads_to_the_whole(self):
        long = "https://a.example/" + "y" * 500
        parts = self.thread(f"{'Some words. ' * 40} {long} {'Some words. ' * 40}")
        found = [uri for part in parts for _, uri in facets(part)]
        assert found == [URL, long]

    @settings(deadline=None)
    @given(text=texts.filter(bool), url=urls)
    def test_whatever_comes_all_parts_fit_and_the_first_leads_to_the_post(self, text, url):
        parts = self.thread(text, url)
        assert_sound(parts[0], url)
        for part in parts[1:]:
            assert count_graphemes(part.text) <= MAX_GRAPHEMES
            assert len(part.text.encode()) <= MAX_BYTES
            assert part.text == part.text.strip() != ""
        if len(parts) > 1:
            joined = "".join("".join(part.text for part in parts[1:]).split())
            assert "".join(text.split()).endswith(joined)

"""What a post is published with is kept small, and read again as it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.syndication.card import MAX_DESCRIPTION_CHARS, MAX_TITLE_CHARS, MAX_URL_CHARS, Card
from proxy.syndication.enrichment import MAX_STORED_BYTES, Enrichment, enrichment_of, pictures_of
from proxy.syndication.post import parse_post

NOW = 1_795_338_000.0


def post(**fields):
    document = {
        "id": "1",
        "url": "https://blog.example/a",
        "title": "A title",
        "published_at": "2026-11-22T09:00:00Z",
        **fields,
    }
    return parse_post(document, now=NOW)[0]


CARD = Card(title="The page's", description="What it says", picture="https://blog.example/a.jpg")


def test_what_the_cms_sent_comes_first():
    assert enrichment_of(post(excerpt="An excerpt"), CARD) == Enrichment(
        title="A title", description="An excerpt", picture=CARD.picture
    )
    assert enrichment_of(post(title=None, text="look"), CARD) == Enrichment(
        title="The page's", description="What it says", picture=CARD.picture
    )


def test_without_anything_the_title_is_the_host():
    assert enrichment_of(post(title=None, text="look")).title == "blog.example"


def test_pictures_are_those_of_the_post():
    images = [{"url": f"https://blog.example/{n}.jpg", "alt": str(n)} for n in range(3)]
    shown = pictures_of(post(images=images), Enrichment(title="", shown=(0, 2, 7)))
    assert [image.alt for image in shown] == ["0", "2"]


texts = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=2000)


@given(texts, texts, st.lists(texts, max_size=12), st.sets(st.integers(0, 3)))
def test_it_is_kept_small_and_read_again(title, description, degraded, shown):
    card = Card(
        title=title[:MAX_TITLE_CHARS],
        description=description[:MAX_DESCRIPTION_CHARS],
        picture=("https://blog.example/" + "é" * 2000)[:MAX_URL_CHARS] if len(title) % 2 else "",
    )
    found = enrichment_of(
        post(title=None, text="look"), card, shown=tuple(sorted(shown)), degraded=tuple(degraded)
    )
    text = found.to_json()
    assert len(text.encode()) <= MAX_STORED_BYTES
    again = Enrichment.from_json(text)
    assert again is not None
    assert (again.title, again.shown) == (found.title, found.shown)
    if len(json.dumps(text)) < MAX_STORED_BYTES / 2:
        assert again == found


def test_the_longest_title_fits_whatever_it_is_made_of():
    found = enrichment_of(post(title=None, text="look"), Card(title='🏳️"\\'[:3] * 100))
    assert len(found.to_json().encode()) <= MAX_STORED_BYTES


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 2, "title": "a"}', '{"format": 1}', "null", "7"]
)
def test_what_is_damaged_or_of_another_format_is_found_out_again(text):
    assert Enrichment.from_json(text) is None

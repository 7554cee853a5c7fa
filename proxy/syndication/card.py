"""What a page says of itself, for a card: OpenGraph, then Twitter, then JSON-LD, then plain HTML. Pure.

Whatever a page contains, nothing of it is an error: what cannot be read is not there.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import regex
from selectolax.lexbor import LexborHTMLParser

MAX_TITLE_CHARS: Final = 300
MAX_DESCRIPTION_CHARS: Final = 300
MAX_URL_CHARS: Final = 1500

_META_TITLES: Final = ("og:title", "twitter:title")
_META_DESCRIPTIONS: Final = ("og:description", "twitter:description")
_META_PICTURES: Final = (
    "og:image:secure_url",
    "og:image",
    "og:image:url",
    "twitter:image",
    "twitter:image:src",
)
# JSON-LD of a page names its site, its author and its breadcrumbs too.
_OF_THE_PAGE: Final = re.compile(
    r"(^|/)(\w*Article|BlogPosting|\w*Posting|WebPage|Recipe|\w*Event|Product|Book)$"
)
_MAX_NODES: Final = 200
# What has no place in a line: what parts words, and what is not seen, such as a hyphen where a word may be
# broken, or what turns the direction of all that follows. What joins emoji and letters stays.
_BREAK: Final = regex.compile(r"[\p{Cc}\p{Cs}\p{Co}\p{Z}]+")
_UNSEEN: Final = regex.compile(
    "[\u00ad\u061c\u180e\u200b\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001]+"
)
_GRAPHEME: Final = regex.compile(r"\X")
# HTML's own rule: the declaration stands in the first 1024 bytes (https://html.spec.whatwg.org/#charset).
_CHARSET: Final = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w-]+)""", re.IGNORECASE)
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Title, description and picture of a page; empty where it has none.

    `picture` is an absolute http(s) URL that nobody has checked. What it shows is not asked for: no card has
    a place for it.
    """

    title: str = ""
    description: str = ""
    picture: str = ""


def read_card(page: bytes, *, url: str, charset: str = "") -> Card:
    """The card in `page`, HTML that came from `url`. `charset` is what its Content-Type says, if it does."""
    tree = LexborHTMLParser(_decoded(page, charset).removeprefix("\ufeff"))
    metas = _metas(tree)
    linked = list(_linked_data(tree))
    base = _base(tree, url)
    heading = tree.css_first("head > title")
    titles = [*_all(metas, _META_TITLES), *_texts(linked, "headline", "name")]
    descriptions = [
        *_all(metas, _META_DESCRIPTIONS),
        *_texts(linked, "description"),
        *metas.get("description", ()),
    ]
    pictures = [*_all(metas, _META_PICTURES), *(picture for node in linked for picture in _pictures(node))]
    picture = next(filter(None, (_absolute(picture, base) for picture in pictures)), "")
    return Card(
        title=one_line([*titles, heading.text() if heading else ""], MAX_TITLE_CHARS),
        description=one_line(descriptions, MAX_DESCRIPTION_CHARS),
        picture=picture,
    )


def _decoded(page: bytes, charset: str) -> str:
    """`page` as text: what its first bytes say comes before its header, that before what stands in it."""
    declared = _CHARSET.search(page[:1024])
    inside = declared[1].decode("ascii", "replace") if declared else ""
    names = [name for mark, name in _BOMS if page.startswith(mark)]
    for name in (*names, charset, inside):
        try:
            # A page that says Latin-1 means this, as browsers know.
            latin = codecs.lookup(name).name in ("iso8859-1", "ascii")
            return page.decode("cp1252" if latin else name, "replace")
        except (LookupError, ValueError):
            continue
    return page.decode("utf-8", "replace")


def _metas(tree: LexborHTMLParser) -> dict[str, list[str]]:
    """Contents of the page's meta elements, by their names; many a page mixes up `name` and `property`."""
    metas: dict[str, list[str]] = {}
    for node in tree.css("meta[content]"):
        name, content = (
            node.attributes.get("property") or node.attributes.get("name"),
            node.attributes["content"],
        )
        if name and content:
            metas.setdefault(name.strip().lower(), []).append(content)
    return metas


def _all(metas: Mapping[str, list[str]], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from metas.get(name, ())


def _linked_data(tree: LexborHTMLParser) -> Iterator[Mapping[str, Any]]:
    """The JSON-LD objects that describe the page."""
    waiting: list[Any] = []
    for node in tree.css('script[type="application/ld+json"]'):
        try:
            waiting.append(json.loads(node.text()))
        except (ValueError, RecursionError):
            continue
    for _ in range(_MAX_NODES):
        if not waiting:
            return
        node = waiting.pop(0)
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            waiting += [node[name] for name in ("@graph", "mainEntity") if name in node]
            if any(
                isinstance(kind, str) and _OF_THE_PAGE.search(kind) for kind in _as_list(node.get("@type"))
            ):
                yield node


def _texts(nodes: Iterable[Mapping[str, Any]], *names: str) -> Iterator[str]:
    for node in nodes:
        yield from (text for text in map(node.get, names) if isinstance(text, str))


def _pictures(node: Mapping[str, Any]) -> Iterator[str]:
    for image in _as_list(node.get("image")):
        picture = (image.get("url") or image.get("contentUrl")) if isinstance(image, dict) else image
        yield from (url for url in _as_list(picture) if isinstance(url, str))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _base(tree: LexborHTMLParser, url: str) -> str:
    base = tree.css_first("base[href]")
    return (_absolute(base.attributes["href"] or "", url) if base else "") or url


def _absolute(reference: str, base: str) -> str:
    """The http(s) URL that `reference` means on a page at `base`, else nothing."""
    try:
        url = urljoin(base, reference.strip())
        sound = urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)
    except ValueError:
        return ""
    return url if sound and reference.strip() and len(url) <= MAX_URL_CHARS and url.isprintable() else ""


def one_line(texts: Iterable[str], most: int) -> str:
    """The first of `texts` that says something, on one line, cut to `most` characters at a grapheme."""
    lines = (" ".join(_UNSEEN.sub("", _BREAK.sub(" ", text)).split()) for text in texts)
    return next(
        (line if len(line) <= most else f"{_shortened(line, most - 1)}…" for line in lines if line), ""
    )


def _shortened(line: str, most: int) -> str:
    """The whole grapheme clusters among the first `most` characters."""
    ends = [match.end() for match in _GRAPHEME.finditer(line, endpos=most + 1)]
    return line[: max((end for end in ends if end <= most), default=0)]

"""The text of a record and the link in it, within the limits of the network.

Lengths are grapheme clusters, as readers count; facets are offsets in UTF-8 bytes
(https://docs.bsky.app/docs/advanced-guides/post-richtext).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import regex

MAX_GRAPHEMES: Final = 300
MAX_BYTES: Final = 3000
PLAIN_TEMPLATE: Final = "{title}\n\n{url}"

_ELLIPSIS: Final = "…"
_GRAPHEME: Final = regex.compile(r"\X")
_PLACEHOLDER: Final = regex.compile(r"\{(title|excerpt|url)\}")
# What follows a URL in a text that is not its continuation: a full stop, but not ".html".
_URL_ENDS: Final = r"(?![\w/?#&=%~+@-])(?![.,:;!][^\s])"
# A word longer than this share of what fits is cut within, not dropped.
_WORD_SHARE: Final = 0.5
# What a link longer than the text is shown with, and what a title keeps beside it.
_SHOWN_LINK: Final = 60
_LEAST_LINK: Final = 30
_KEPT_TITLE: Final = 80


@dataclass(frozen=True, slots=True)
class LinkFacet:
    """A link over the bytes `start` (inclusive) to `end` (exclusive) of the text in UTF-8."""

    start: int
    end: int
    uri: str

    def as_record(self) -> dict[str, Any]:
        """The facet as the lexicon app.bsky.richtext.facet has it."""
        return {
            "index": {"byteStart": self.start, "byteEnd": self.end},
            "features": [{"$type": "app.bsky.richtext.facet#link", "uri": self.uri}],
        }


@dataclass(frozen=True, slots=True)
class RichText:
    """A text with its links. `shortened` names the parts that had to be cut."""

    text: str
    links: tuple[LinkFacet, ...]
    shortened: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Size:
    """How much text: grapheme clusters and UTF-8 bytes."""

    graphemes: int
    utf8: int

    def fits(self, room: _Size) -> bool:
        return self.graphemes <= room.graphemes and self.utf8 <= room.utf8

    def minus(self, other: _Size) -> _Size:
        return _Size(self.graphemes - other.graphemes, self.utf8 - other.utf8)


_ROOM: Final = _Size(MAX_GRAPHEMES, MAX_BYTES)

# What a text is made of: (None, literal) or (name of the part, its value).
_Piece = tuple[str | None, str]


def compose(*, template: str, title: str | None, excerpt: str | None, text: str | None, url: str) -> RichText:
    """The text of a post: `text` as its author wrote it, else `template` filled in; always with the link.

    What is too long loses its excerpt first, then the end of its title or text, at a word if there is one,
    with an ellipsis. The link always stands in the text; one too long to be shown is shown in part and leads
    to the whole. A part that is empty goes together with what separates it from the part before.
    """
    if text is not None:
        return _written(_tidy(text), url)
    values = {"title": _line(title), "excerpt": _tidy(excerpt), "url": url}
    return _fill(template, values) or _fill(PLAIN_TEMPLATE, values) or _written("", url)


def count_graphemes(text: str) -> int:
    """Grapheme clusters in `text` (UAX #29), which is what limits are counted in."""
    return len(_GRAPHEME.findall(text))


def _written(text: str, url: str) -> RichText:
    """An author's own text, followed by the link unless it is in there."""
    there = regex.search(regex.escape(url) + _URL_ENDS, text)
    if there and _size(text).fits(_ROOM):
        return _render([(None, text[: there.start()]), ("url", url), (None, text[there.end() :])], url, ())
    skeleton: list[_Piece] = [("text", ""), (None, "\n\n"), ("url", "")]
    fitted = _fitted(skeleton, {"text": text, "url": url})
    # Not reached: nothing but a blank line stands beside what can be cut.
    return fitted or _render([("url", _shown(url, _ROOM))], url, ("url",))


def _fill(template: str, values: dict[str, str]) -> RichText | None:
    """The template filled in, None when its own words leave no room for title and link."""
    skeleton = _parsed(template.replace("\r\n", "\n"))
    if not any(name == "url" for name, _ in skeleton):
        skeleton += [(None, "\n\n"), ("url", "")]
    return _fitted(skeleton, values)


def _parsed(template: str) -> list[_Piece]:
    """Literals and names in turn; braces that name nothing we know are literals."""
    pieces: list[_Piece] = []
    position = 0
    for match in _PLACEHOLDER.finditer(template):
        pieces += [(None, template[position : match.start()]), (match[1], "")]
        position = match.end()
    return [*pieces, (None, template[position:])]


def _fitted(skeleton: Sequence[_Piece], values: dict[str, str]) -> RichText | None:
    """The parts `values` in their places, shortened until they fit; None if they cannot."""
    names = [name for name, _ in skeleton]
    cut = dict(values)
    shortened = []
    for name in ("excerpt", "url", "title", "text"):
        if _total(_filled(skeleton, cut)).fits(_ROOM):
            break
        if name in names and cut[name]:
            short = _shortened(skeleton, cut, name, copies=names.count(name))
            shortened += [name] if short != cut[name] else []
            cut[name] = short
    pieces = _filled(skeleton, cut)
    if not cut["url"] or not _total(pieces).fits(_ROOM):
        return None
    return _render(pieces, values["url"], tuple(shortened))


def _shortened(skeleton: Sequence[_Piece], values: dict[str, str], name: str, *, copies: int) -> str:
    """What the others leave of the part `name`. A link leaves the beginning of title and text alone."""
    others = {**values, name: _ELLIPSIS}
    if name == "url":
        for body in ("title", "text"):
            others[body] = "".join(_GRAPHEME.findall(others.get(body, ""))[:_KEPT_TITLE])
    taken, mark = _total(_filled(skeleton, others)), _size(_ELLIPSIS)
    left = _ROOM.minus(taken)
    room = _Size(left.graphemes // copies + mark.graphemes, left.utf8 // copies + mark.utf8)
    return _shown(values[name], room) if name == "url" else _cut(values[name], room)


def _filled(skeleton: Iterable[_Piece], values: dict[str, str]) -> list[_Piece]:
    """The parts in their places; one that is empty takes along what separates it from the part before."""
    kept: list[_Piece] = []
    for name, literal in skeleton:
        if name is None:
            kept.append((None, literal))
        elif values.get(name):
            kept.append((name, values[name]))
        elif kept and kept[-1][0] is None:
            kept.pop()
    return _trimmed(kept)


def _trimmed(pieces: Iterable[_Piece]) -> list[_Piece]:
    """Without white space at either end."""
    kept = [piece for piece in pieces if piece[1]]
    while kept and kept[0][0] is None and not kept[0][1].strip():
        kept.pop(0)
    while kept and kept[-1][0] is None and not kept[-1][1].strip():
        kept.pop()
    if kept and kept[0][0] is None:
        kept[0] = (None, kept[0][1].lstrip())
    if kept and kept[-1][0] is None:
        kept[-1] = (None, kept[-1][1].rstrip())
    return kept


def _cut(text: str, room: _Size) -> str:
    """The beginning of `text` that fits, up to a word's end if there is one, with an ellipsis; or nothing."""
    if _size(text).fits(room):
        return text
    kept = _beginning(text, room.minus(_size(_ELLIPSIS)))
    if not kept:
        return ""
    if not text[len(kept) :][:1].isspace():
        words = regex.split(r"\s+\S*$", kept, maxsplit=1)[0]
        if count_graphemes(words) >= count_graphemes(kept) * _WORD_SHARE:
            kept = words
    return kept.rstrip(" \n\t.,;:…–—-") + _ELLIPSIS


def _shown(url: str, room: _Size) -> str:
    """As much of a link as there is room for, but no more than is of use; nothing if that is too little."""
    if _size(url).fits(room):
        return url
    if room.graphemes < _LEAST_LINK:
        return ""
    bounded = _Size(min(room.graphemes, _SHOWN_LINK), room.utf8)
    beginning = _beginning(url, bounded.minus(_size(_ELLIPSIS)))
    return beginning + _ELLIPSIS if beginning else ""


def _beginning(text: str, room: _Size) -> str:
    graphemes, utf8, end = 0, 0, 0
    for match in _GRAPHEME.finditer(text):
        graphemes, utf8 = graphemes + 1, utf8 + len(match[0].encode())
        if graphemes > room.graphemes or utf8 > room.utf8:
            break
        end = match.end()
    return text[:end]


def _render(pieces: Iterable[_Piece], url: str, shortened: tuple[str, ...]) -> RichText:
    text, position = "", 0
    links = []
    for name, value in pieces:
        end = position + len(value.encode())
        if name == "url":
            links.append(LinkFacet(position, end, url))
        text, position = text + value, end
    return RichText(text, tuple(links), shortened)


def _total(pieces: Iterable[_Piece]) -> _Size:
    # Counted as one text: a combining mark at a border joins the grapheme before it.
    return _size("".join(value for _, value in pieces))


def _size(text: str) -> _Size:
    return _Size(count_graphemes(text), len(text.encode()))


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _tidy(text: str | None) -> str:
    """Without needless white space: at the ends, several spaces, several blank lines."""
    lines = [" ".join(line.split()) for line in (text or "").strip().splitlines()]
    kept = [line for number, line in enumerate(lines) if line or lines[number - 1]]
    return "\n".join(kept)

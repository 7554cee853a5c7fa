"""The text of a record with its links, mentions and tags, within the limits of the network. Pure.

Facets are offsets in UTF-8 bytes (https://docs.bsky.app/docs/advanced-guides/post-richtext).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import regex

from proxy.syndication.entities import Entity, Kind, detect, hashtag, without_overlaps
from proxy.syndication.fitting import ELLIPSIS, ROOM, Size, beginning, cut, size, split

PLAIN_TEMPLATE: Final = "{title}\n\n{url}"

_PLACEHOLDER: Final = regex.compile(r"\{(title|excerpt|url|tags)\}")
# What follows a URL in a text that is not its continuation: a full stop, but not ".html".
_URL_ENDS: Final = r"(?![\w/?#&=%~+@-])(?![.,:;!][^\s])"
# What a link too long for its place is shown with, and what a title keeps beside it.
_SHOWN_LINK: Final = 60
_LEAST_LINK: Final = 30
_KEPT_TITLE: Final = 80


@dataclass(frozen=True, slots=True)
class Wording:
    """What a post has to say. `title`, `excerpt` and `tags` fill a template, `text` stands in its place."""

    url: str
    title: str | None = None
    excerpt: str | None = None
    text: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RichText:
    """A text with its entities, in order and apart. `shortened` names the parts that had to be cut."""

    text: str
    entities: tuple[Entity, ...]
    shortened: tuple[str, ...] = ()

    @property
    def handles(self) -> tuple[str, ...]:
        """Whom it mentions."""
        return tuple(entity.value for entity in self.entities if entity.kind is Kind.MENTION)

    def facets(self, dids: Mapping[str, str]) -> list[dict[str, Any]]:
        """The entities as app.bsky.richtext.facet has them, without mentions that `dids` does not know."""
        facets, position, offset = [], 0, 0
        for entity in self.entities:
            start = offset + len(self.text[position : entity.start].encode())
            end = start + len(self.text[entity.start : entity.end].encode())
            position, offset = entity.end, end
            if (feature := _feature(entity, dids)) is not None:
                facets.append({"index": {"byteStart": start, "byteEnd": end}, "features": [feature]})
        return facets


_WHOLE: Final[Mapping[str, str]] = MappingProxyType({})

# What a text is made of: (None, literal) or (name of the part, its value).
_Piece = tuple[str | None, str]


def compose(wording: Wording, template: str) -> RichText:
    """The text of a post: its own as its author wrote it, else `template` filled in; always with the link.

    What is too long loses its excerpt first, then tags, then the end of its title or text, at a word if there
    is one, with an ellipsis. The link always stands in the text; one too long to be shown is shown in part
    and leads to the whole. A part that is empty goes together with what separates it from the part before.
    """
    url = wording.url
    if wording.text is not None:
        return _written(_tidy(wording.text), url)
    values = {
        "title": _line(wording.title),
        "excerpt": _tidy(wording.excerpt),
        "url": url,
        "tags": " ".join(dict.fromkeys(f"#{tag}" for tag in map(hashtag, wording.tags) if tag)),
    }
    return _fill(template, values) or _fill(PLAIN_TEMPLATE, values) or _written("", url)


def compose_thread(wording: Wording, template: str) -> tuple[RichText, ...]:
    """The texts of a thread: a long text in parts, of which the first has the link; else as `compose`.

    The link stands where those see it who see only the first post.
    """
    whole = compose(wording, template)
    if wording.text is None or "text" not in whole.shortened:
        return (whole,)
    url, (text, uris) = wording.url, _abridged(_tidy(wording.text))
    parts = split(text, ROOM)
    if not parts or not _stands_in(parts[0], url, uris):
        ending = f"\n\n{_shown(url, Size(_SHOWN_LINK, ROOM.utf8))}"
        parts = split(text, ROOM.minus(size(ending)))
    left_out = "".join(" ".join(parts).split()) != "".join(text.split())
    first = replace(_written(parts[0] if parts else "", url, uris), shortened=("text",) if left_out else ())
    return (first, *(_render([(None, part)], url, uris=uris) for part in parts[1:]))


def _written(text: str, url: str, uris: Mapping[str, str] = _WHOLE) -> RichText:
    """An author's own text, followed by the link unless it is in there. `uris`: see `_render`."""
    if _stands_in(text, url, uris) and size(text).fits(ROOM):
        return _render(_around(text, url), url, uris=uris)
    skeleton: list[_Piece] = [("text", ""), (None, "\n\n"), ("url", "")]
    if not _total([("text", text), (None, "\n\n"), ("url", url)]).fits(ROOM) and not uris:
        text, uris = _abridged(text)
        kept = cut(text, ROOM)
        if _stands_in(kept, url, uris):
            return _render(_around(kept, url), url, ("text",) if kept != text else (), uris)
    fitted = _fitted(skeleton, {"text": text, "url": url}, uris)
    # Not reached: nothing but a blank line stands beside what can be cut.
    return fitted or _render([("url", _shown(url, ROOM))], url, ("url",))


def _abridged(text: str) -> tuple[str, dict[str, str]]:
    """`text` with its long links shown in part; and where those lead that it then seems to have."""
    uris: dict[str, str] = {}
    for link in reversed(detect(text)):
        if link.kind is not Kind.LINK or link.end - link.start <= _SHOWN_LINK:
            continue
        shown = _shown(text[link.start : link.end], Size(_SHOWN_LINK, ROOM.utf8))
        seeming = detect(shown)
        whole = [entity.end for entity in seeming] == [len(shown)]
        if whole and uris.setdefault(seeming[0].value, link.value) == link.value:
            text = text[: link.start] + shown + text[link.end :]
    return text, uris


def _stands_in(text: str, url: str, uris: Mapping[str, str]) -> bool:
    """Whether the link is in `text`: written out, without its scheme as people do, or in part."""
    return len(_around(text, url)) > 1 or any(uris.get(e.value, e.value) == url for e in detect(text))


def _around(text: str, url: str) -> list[_Piece]:
    """`text` in pieces around the link written out in it, also where it would not be detected."""
    there = regex.search(regex.escape(url) + _URL_ENDS, text)
    if there is None:
        return [(None, text)]
    return [(None, text[: there.start()]), ("url", url), (None, text[there.end() :])]


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


def _fitted(
    skeleton: Sequence[_Piece], values: dict[str, str], uris: Mapping[str, str] = _WHOLE
) -> RichText | None:
    """The parts `values` in their places, shortened until they fit; None if they cannot."""
    names = [name for name, _ in skeleton]
    short = dict(values)
    shortened = []
    for name in ("excerpt", "tags", "url", "title", "text"):
        if _total(_filled(skeleton, short)).fits(ROOM):
            break
        if name in names and short.get(name):
            short[name] = _shortened(skeleton, short, name, copies=names.count(name))
            shortened += [name] if short[name] != values[name] else []
    pieces = _filled(skeleton, short)
    if not short["url"] or not _total(pieces).fits(ROOM):
        return None
    return _render(pieces, values["url"], tuple(shortened), uris)


def _shortened(skeleton: Sequence[_Piece], values: dict[str, str], name: str, *, copies: int) -> str:
    """What the others leave of the part `name`. A link leaves the beginning of title and text alone."""
    others = {**values, name: ELLIPSIS}
    if name == "url":
        for body in ("title", "text"):
            others[body] = beginning(others.get(body, ""), Size(_KEPT_TITLE, ROOM.utf8))
    taken, mark = _total(_filled(skeleton, others)), size(ELLIPSIS)
    left = ROOM.minus(taken)
    room = Size(left.graphemes // copies + mark.graphemes, left.utf8 // copies + mark.utf8)
    match name:
        case "url":
            return _shown(values[name], room)
        case "tags":
            return _fewer(values[name], room)
        case _:
            return cut(values[name], room)


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


def _shown(url: str, room: Size) -> str:
    """As much of a link as there is room for, but no more than is of use; nothing if that is too little."""
    if size(url).fits(room):
        return url
    if room.graphemes < _LEAST_LINK:
        return ""
    bounded = Size(min(room.graphemes, _SHOWN_LINK), room.utf8)
    shown = beginning(url, bounded.minus(size(ELLIPSIS)))
    return shown + ELLIPSIS if shown else ""


def _fewer(tags: str, room: Size) -> str:
    """As many of the tags as there is room for."""
    kept = tags.split(" ")
    while kept and not size(" ".join(kept)).fits(room):
        kept.pop()
    return " ".join(kept)


def _render(
    pieces: Iterable[_Piece],
    url: str,
    shortened: tuple[str, ...] = (),
    uris: Mapping[str, str] = _WHOLE,
) -> RichText:
    """The text of `pieces`. `uris` says where links lead that are shown in part, by where they seem to."""
    text = ""
    known: list[Entity] = []
    for name, value in pieces:
        start, text = len(text), text + value
        if name == "url":
            known.append(Entity(start, len(text), Kind.LINK, url))
        elif name == "tags":
            known += _placed(value, start)
    detected = [replace(entity, value=uris.get(entity.value, entity.value)) for entity in detect(text)]
    return RichText(text, _merged(known, detected), shortened)


def _placed(tags: str, start: int) -> list[Entity]:
    """The entities of tags, wherever they stand: `(#tag)` is not detected as one."""
    return [replace(tag, start=start + tag.start, end=start + tag.end) for tag in detect(tags)]


def _merged(known: Sequence[Entity], detected: Iterable[Entity]) -> tuple[Entity, ...]:
    """What is known of a text, and what was detected beside it."""
    beside = [d for d in detected if not any(d.start < k.end and k.start < d.end for k in known)]
    return without_overlaps(sorted([*known, *beside], key=lambda entity: entity.start))


def _feature(entity: Entity, dids: Mapping[str, str]) -> dict[str, Any] | None:
    match entity.kind:
        case Kind.LINK:
            return {"$type": "app.bsky.richtext.facet#link", "uri": entity.value}
        case Kind.TAG:
            return {"$type": "app.bsky.richtext.facet#tag", "tag": entity.value}
        case Kind.MENTION:
            did = dids.get(entity.value)
            return None if did is None else {"$type": "app.bsky.richtext.facet#mention", "did": did}


def _total(pieces: Iterable[_Piece]) -> Size:
    # Counted as one text: a combining mark at a border joins the grapheme before it.
    return size("".join(value for _, value in pieces))


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _tidy(text: str | None) -> str:
    """Without needless white space: at the ends, several spaces, several blank lines."""
    lines = [" ".join(line.split()) for line in (text or "").strip().splitlines()]
    kept = [line for number, line in enumerate(lines) if line or lines[number - 1]]
    return "\n".join(kept)

"""Texts measured and cut to what fits: at a word, never within a link, mention, tag or grapheme. Pure.

Lengths are grapheme clusters (UAX #29), as readers count, and bytes of UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import regex

from proxy.syndication.entities import Entity, detect

MAX_GRAPHEMES: Final = 300
MAX_BYTES: Final = 3000
ELLIPSIS: Final = "…"

# A flag first: \X alone counts back over all those before it, so that a row of flags takes quadratic time.
_GRAPHEME: Final = regex.compile(r"\p{RI}{2}(?![\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}])|\X")
# Within one: where servers see its end whose Unicode is older than 16. To them only scripts of India have
# stacks of consonants, not those of Cambodia, Myanmar or Bali.
_SEEN_AS_END: Final = regex.compile(
    r"(?<=[\p{InCB=Linker}--[\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d]])"
    r"(?=[\p{InCB=Extend}\p{InCB=Linker}]*\p{InCB=Consonant})",
    regex.VERSION1,
)
_WORD: Final = regex.compile(r"\S+")
_SPACE: Final = regex.compile(r"\s")
# White space that is looked at for the end of a paragraph.
_LOOK_AHEAD: Final = 10
_LONGEST_WORD: Final = 2100
# What looks wrong before an ellipsis.
_LOOSE: Final = " \n\t.,;:…–—-"
# What a text without an end of a word in this share of what fits is cut within.
_WORD_SHARE: Final = 0.5
# Where a part of a thread ends, the best first, if that leaves it this share of what fits.
_PART_ENDS: Final = (
    regex.compile(r"\S(?=\s*\n\s*\n)"),
    regex.compile(r"""[.!?…][\])"'”’»]*(?=\s)|[。！？][」』）]*"""),
    regex.compile(r"\S(?=\s*\n)"),
)
_PART_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Size:
    """How much text: grapheme clusters and UTF-8 bytes."""

    graphemes: int
    utf8: int

    def fits(self, room: Size) -> bool:
        """Whether it is at most `room`, in both."""
        return self.graphemes <= room.graphemes and self.utf8 <= room.utf8

    def minus(self, other: Size) -> Size:
        """What `other` leaves of it."""
        return Size(self.graphemes - other.graphemes, self.utf8 - other.utf8)


ROOM: Final = Size(MAX_GRAPHEMES, MAX_BYTES)


def count_graphemes(text: str) -> int:
    """Grapheme clusters in `text`, which is what limits are counted in: as many as any server sees."""
    return sum(map(_seen, _GRAPHEME.findall(text)))


def _seen(cluster: str) -> int:
    """As how many clusters the one may be counted."""
    return 1 + len(_SEEN_AS_END.findall(cluster)) if len(cluster) > 2 else 1


def size(text: str) -> Size:
    """How much `text` is."""
    return Size(count_graphemes(text), len(text.encode()))


def beginning(text: str, room: Size) -> str:
    """As many whole grapheme clusters from the start of `text` as fit."""
    return text[: _ends(text, room)[-1]]


def cut(text: str, room: Size) -> str:
    """`text` if it fits, else its beginning, up to a word's end if there is one, with an ellipsis."""
    if size(text).fits(room):
        return text
    whole = detect(text)
    for end in _word_ends(text, _ends(text, room.minus(size(ELLIPSIS)))):
        if _lies_in(whole, end):
            continue
        kept = text[:end].rstrip()
        loose = kept.rstrip(_LOOSE)
        # After a link the ellipsis would become part of it, and stands apart.
        for short in (f"{loose}{ELLIPSIS}", f"{kept} {ELLIPSIS}"):
            if loose and size(short).fits(room) and detect(short) == _within(whole, end):
                return short
    return ""


def split(text: str, first: Size, others: Size = ROOM) -> list[str]:
    """`text` in parts of which the first fits into `first` and the others into `others`.

    A part ends with a paragraph, a sentence, a line or at least a word. A grapheme cluster larger than a part
    is left out.
    """
    parts, room, rest = [], first, text.strip()
    while rest:
        end = _part_end(rest, room)
        if end == 0:
            rest = _GRAPHEME.sub("", rest, 1).strip()
            continue
        parts.append(rest[:end].rstrip())
        rest, room = rest[end:].strip(), others
    return parts


def _part_end(text: str, room: Size) -> int:
    """Where to end a part, 0 if not even one grapheme cluster fits."""
    ends = _ends(text, room)
    if ends[-1] == len(text):
        return len(text)
    # A word that goes on is seen whole, but no more: the text may be long.
    space = _SPACE.search(text, ends[-1], ends[-1] + _LONGEST_WORD)
    text = text[: space.end() + _LOOK_AHEAD if space else ends[-1] + _LONGEST_WORD]
    whole, least, possible = detect(text), ends[-1] * _PART_SHARE, set(ends)
    for kind in _PART_ENDS:
        good: list[int] = [match.end() for match in kind.finditer(text) if match.end() in possible]
        for end in reversed(good):
            if end >= least and _is_sound(text, whole, end):
                return end
    for end in _word_ends(text, ends):
        if _is_sound(text, whole, end):
            return end
    # A word too long for a part: cut before the link that it ends with, or within a link that fits no part.
    starts = [entity.start for entity in whole if entity.start < ends[-1] < entity.end]
    return starts[0] if starts and starts[0] in possible and starts[0] > 0 else ends[-1]


def _is_sound(text: str, whole: tuple[Entity, ...], end: int) -> bool:
    """Whether the text up to `end` has the entities that the whole has there, and all of each."""
    return not _lies_in(whole, end) and detect(text[:end]) == _within(whole, end)


def _lies_in(entities: tuple[Entity, ...], end: int) -> bool:
    return any(entity.start < end < entity.end for entity in entities)


def _within(entities: tuple[Entity, ...], end: int) -> tuple[Entity, ...]:
    return tuple(entity for entity in entities if entity.end <= end)


def _ends(text: str, room: Size) -> list[int]:
    """Where a grapheme cluster ends, as far as fits; 0 is the first."""
    graphemes, utf8, ends = 0, 0, [0]
    for match in _GRAPHEME.finditer(text):
        graphemes += _seen(match[0])
        utf8 += len(match[0].encode())
        if graphemes > room.graphemes or utf8 > room.utf8:
            break
        ends.append(match.end())
    return ends


def _word_ends(text: str, ends: list[int]) -> Iterator[int]:
    """Where `text` may be cut, the best first: at a word's end, but not far before what fits.

    `ends` are the possible places. Within a word only if the word is that long.
    """
    last, possible = ends[-1], set(ends)
    words = [match.end() for match in _WORD.finditer(text, endpos=last + 1) if match.end() in possible]
    far = not words or words[-1] < last * _WORD_SHARE
    if far and last:
        yield last
    yield from reversed(words)

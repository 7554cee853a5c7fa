"""Links, mentions and tags in a text, found where Bluesky's own clients find them. Pure.

What authors know from the official app holds here too, whose rules are those of @atproto/api's rich text.
Where those would make a record that a PDS refuses or a link that leads nowhere, ours differ: a bare name that
begins with "http" is given its scheme; a link ends before all the punctuation that ends a sentence, and
before brackets that it did not open; of two that overlap the first is kept, which is what clients show.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache
from typing import Final
from urllib.parse import urlsplit

import regex
from publicsuffixlist import PublicSuffixList

from proxy.syntax import is_handle, is_uri

_MAX_TAG_UTF16: Final = 64

# White space as ECMAScript has it: the rules were written in its terms.
_SPACE: Final = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_INVISIBLE: Final = r"\u00ad\u2060\u200a-\u200d\u20e2"
_AFTER_SPACE: Final = rf"(?<![^{_SPACE}])"
_AFTER_SPACE_OR_BRACKET: Final = rf"(?<![^{_SPACE}(])"
_WORD: Final = "[A-Za-z0-9_]"
_WORD_BOUNDARY: Final = f"(?:(?<={_WORD})(?!{_WORD})|(?<!{_WORD})(?={_WORD}))"

_MENTION: Final = regex.compile(rf"{_AFTER_SPACE_OR_BRACKET}@([A-Za-z0-9.-]+){_WORD_BOUNDARY}")
_LINK: Final = regex.compile(
    rf"{_AFTER_SPACE_OR_BRACKET}(?:[Hh][Tt]{{2}}[Pp][Ss]?://[^{_SPACE}]+"
    rf"|(?P<domain>[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z0-9]+)+)[^{_SPACE}]*)"
)
_TAG: Final = regex.compile(
    rf"{_AFTER_SPACE}[#＃](?!\ufe0f)"
    rf"([^{_SPACE}{_INVISIBLE}]*[^0-9\p{{P}}{_SPACE}{_INVISIBLE}][^{_SPACE}{_INVISIBLE}]*)"
)
_CASHTAG: Final = regex.compile(
    rf"{_AFTER_SPACE_OR_BRACKET}\$([A-Za-z][A-Za-z0-9]{{0,4}})(?=[{_SPACE}.,;:!?)\"'\u2019]|\Z)"
)
_ENDING_PUNCTUATION: Final = regex.compile(r"\p{P}+\Z")
_NOT_IN_A_TAG: Final = regex.compile(rf"[{_SPACE}{_INVISIBLE}\p{{P}}]+")


class Kind(enum.Enum):
    """What an entity is."""

    LINK = enum.auto()
    MENTION = enum.auto()
    TAG = enum.auto()


@dataclass(frozen=True, slots=True)
class Entity:
    """The characters `start` (inclusive) to `end` (exclusive) of a text, and what they stand for.

    `value` is the URI of a link, the handle of a mention, a tag without its `#`.
    """

    start: int
    end: int
    kind: Kind
    value: str


def detect(text: str) -> tuple[Entity, ...]:
    """The entities of `text` in their order; none overlaps another."""
    found = [*_mentions(text), *_links(text), *_tags(text), *_cashtags(text)]
    return without_overlaps(sorted(found, key=lambda entity: entity.start))


def without_overlaps(entities: list[Entity]) -> tuple[Entity, ...]:
    """Of those that overlap the first."""
    kept: list[Entity] = []
    for entity in entities:
        if not kept or entity.start >= kept[-1].end:
            kept.append(entity)
    return tuple(kept)


def hashtag(tag: str) -> str:
    """`tag` as it can stand in a text, without its `#`: one word, empty if nothing of it can be a tag."""
    words = [word for word in _NOT_IN_A_TAG.split(tag) if word]
    # The capitals let screen readers, and readers, tell the words apart.
    joined = words[0] if len(words) == 1 else "".join(word[:1].upper() + word[1:] for word in words)
    found = detect(f"#{joined}")
    return joined if found and found[0].value == joined else ""


def _mentions(text: str) -> list[Entity]:
    return [
        Entity(match.start(), match.end(), Kind.MENTION, match[1])
        for match in _MENTION.finditer(text)
        if is_handle(match[1]) and (_has_known_tld(match[1]) or match[1].endswith(".test"))
    ]


def _links(text: str) -> list[Entity]:
    links = []
    for match in _LINK.finditer(text):
        shown = _without_end_of_sentence(match[0])
        domain = match["domain"]
        if domain is not None and _has_known_tld(domain):
            uri = f"https://{shown}"
        elif domain is None and shown.startswith("http"):
            uri = shown
        else:
            continue
        if _leads_somewhere(uri):
            links.append(Entity(match.start(), match.start() + len(shown), Kind.LINK, uri))
    return links


def _tags(text: str) -> list[Entity]:
    tags = []
    for match in _TAG.finditer(text):
        tag = _ENDING_PUNCTUATION.sub("", match[1])
        if len(tag.encode("utf-16-le")) // 2 <= _MAX_TAG_UTF16:
            tags.append(Entity(match.start(), match.start() + 1 + len(tag), Kind.TAG, tag))
    return tags


def _cashtags(text: str) -> list[Entity]:
    return [
        Entity(match.start(), match.end(), Kind.TAG, f"${match[1].upper()}")
        for match in _CASHTAG.finditer(text)
    ]


def _without_end_of_sentence(link: str) -> str:
    end = len(link)
    while end and (link[end - 1] in ".,;:!?" or _closes_nothing(link[:end])):
        end -= 1
    return link[:end]


def _closes_nothing(link: str) -> bool:
    return link.endswith(")") and link.count(")") > link.count("(")


def _leads_somewhere(uri: str) -> bool:
    try:
        return bool(urlsplit(uri).hostname) and is_uri(uri)
    except ValueError:
        return False


def _has_known_tld(domain: str) -> bool:
    """Whether `domain` ends as names on the Internet do; else it is `node.js` or a slip of the keyboard."""
    suffix = domain.rpartition(".")[2]
    return suffix == suffix.lower() and _suffixes().publicsuffix(domain.lower()) is not None


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False, only_icann=True)

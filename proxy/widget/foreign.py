"""What the network sends, made harmless: text within bounds, checked addresses, dates, else nothing.

The rules are those of static/widget.js, to the letter: a page that is rendered here goes on there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

WEB: Final = "https://bsky.app"
MAX_TEXT_BYTES: Final = 3000
MAX_NAME_BYTES: Final = 640
_MAX_URL_CHARS: Final = 2048
_MAX_SIDE: Final = 100_000

# Invisible characters and those that turn the direction of text: no address contains them, no name is made
# of them.
_BLANK: Final = "\\0- \x7f-\xa0\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ud800-\udfff"
# Letters that look like none may stand in an address.
_VISIBLE = re.compile(f"[^{_BLANK}\xad\u034f\u061c\u115f\u1160\u180e\u2800\u3164\uffa0]")
_HTTP = re.compile(
    rf'[Hh][Tt][Tt][Pp][Ss]?://([^{_BLANK}/?#@:\\<>"]+)(:[0-9]{{1,5}})?([/?#][^{_BLANK}\\<>"]*)?'
)
_DID_PATTERN: Final = r"did:[a-z]+:[A-Za-z0-9._:%-]{1,500}"
_DID = re.compile(_DID_PATTERN)
_HANDLE = re.compile(r"[A-Za-z0-9.-]{1,253}")
_RECORD = re.compile(rf"at://({_DID_PATTERN})/([A-Za-z.]{{1,100}})/([A-Za-z0-9._:~-]{{1,512}})")
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_GAP = re.compile(r"\n{3,}")
# What encodeURIComponent leaves as it is.
_UNESCAPED: Final = "!'()*~"

_PLACES: Final = {
    "app.bsky.feed.post": "post",
    "app.bsky.feed.generator": "feed",
    "app.bsky.graph.list": "lists",
}
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a post's text and the address that it links to, or an empty one."""

    text: str
    href: str


def field(value: Any, *names: str) -> Any:
    """The value under `names`, one within the other; None where there is no such thing."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def items(value: Any, most: int = 100) -> list[Any]:
    """The first `most` items of a list; of anything else none."""
    return value[:most] if isinstance(value, list) else []


def text(value: Any, most_bytes: int) -> str:
    """`value` without control characters, and not much longer than `most_bytes` of UTF-8."""
    return _shown(_bytes(value, most_bytes))


def visible(value: str) -> bool:
    """Whether there is anything to see."""
    return _VISIBLE.search(value) is not None


def http_url(value: Any) -> str:
    """`value` if it is an address of http or https, without user and password."""
    return value if _http_match(value) else ""


def host_of(url: str) -> str:
    """The host of an address that `http_url` let pass."""
    match = _http_match(url)
    return match[1].lower() if match else ""


def did(value: Any) -> str:
    """`value` if it is a DID."""
    return _matching(_DID, value)


def handle(value: Any) -> str:
    """`value` if it may be a handle."""
    return _matching(_HANDLE, value)


def language(value: Any) -> str:
    """`value` if it may be the name of a language."""
    return _matching(_LANGUAGE, value)


def kind(value: Any) -> str:
    """The part of a `$type` after the #; empty for what has none."""
    type_ = field(value, "$type")
    return type_.partition("#")[2].partition("#")[0] if isinstance(type_, str) else ""


def side(value: Any) -> int:
    """A width or height in pixels, 0 if it is none."""
    number = _whole(value)
    return number if number is not None and 0 < number <= _MAX_SIDE else 0


def web_address(uri: Any) -> str:
    """Where a record is shown on the web; empty for what is not shown there."""
    match = _RECORD.fullmatch(uri) if isinstance(uri, str) else None
    if match is None:
        return ""
    account, collection, key = match.groups()
    if collection == "app.bsky.graph.starterpack":
        return f"{WEB}/starter-pack/{account}/{key}"
    if collection == "app.bsky.labeler.service":
        return f"{WEB}/profile/{account}"
    place = _PLACES.get(collection)
    return f"{WEB}/profile/{account}/{place}/{key}" if place else ""


def component(value: str) -> str:
    """`value` as a part of an address."""
    return quote(value, safe=_UNESCAPED)


def earliest(*dates: Any) -> datetime | None:
    """The earliest of what are dates, without those before 1970; to the second."""
    instants = [instant for date in dates if (instant := _instant(date)) is not None]
    known = [instant for instant in instants if instant >= _EPOCH]
    return min(known).replace(microsecond=0) if known else None


def segments(record: Any) -> list[Segment]:
    """A post's text cut at its facets, whose offsets count bytes.

    A facet that overlaps another, splits a character or lies outside is ignored.
    """
    data = _bytes(field(record, "text"), MAX_TEXT_BYTES)
    pieces: list[Segment] = []
    at = 0
    for start, end, href in sorted(_links(record, data), key=lambda link: link[0]):
        if start >= at:
            pieces += [Segment(_piece(data[at:start]), ""), Segment(_piece(data[start:end]), href)]
            at = end
    pieces.append(Segment(_piece(data[at:]), ""))
    return [piece for piece in pieces if piece.text]


def labels_of(*things: Any) -> frozenset[str]:
    """The values of all labels on `things`, without what they take back."""
    found: set[str] = set()
    for thing in things:
        labels = field(thing, "labels")
        values = field(labels, "values")
        for label in items(labels if values is None else values):
            value = field(label, "val")
            if isinstance(value, str) and field(label, "neg") is not True:
                found.add(value)
    return frozenset(found)


def _bytes(value: Any, most_bytes: int) -> bytes:
    if not isinstance(value, str):
        return b""
    data = _LONE_SURROGATE.sub("\ufffd", value).encode()
    if len(data) <= most_bytes:
        return data
    end = most_bytes
    while _continues(data, end):
        end -= 1
    return data[:end] + "…".encode()


def _shown(data: bytes) -> str:
    return _CONTROL.sub("", data.decode())


def _piece(data: bytes) -> str:
    return _GAP.sub("\n\n", _shown(data))


def _continues(data: bytes, at: int) -> bool:
    """Whether the byte at `at` is in the middle of a character."""
    return at < len(data) and data[at] & 0xC0 == 0x80


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""


def _http_match(value: Any) -> re.Match[str] | None:
    return _HTTP.fullmatch(value) if isinstance(value, str) and len(value) <= _MAX_URL_CHARS else None


def _instant(value: Any) -> datetime | None:
    if not _matching(_INSTANT, value):
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _links(record: Any, data: bytes) -> Iterator[tuple[int, int, str]]:
    for facet in items(field(record, "facets")):
        start, end = field(facet, "index", "byteStart"), field(facet, "index", "byteEnd")
        start, end = _boundary(data, start), _boundary(data, end)
        if start is not None and end is not None and start < end and (href := _link(facet)):
            yield start, end, href


def _boundary(data: bytes, at: Any) -> int | None:
    """`at` if it is between two characters."""
    number = _whole(at)
    return (
        number if number is not None and 0 <= number <= len(data) and not _continues(data, number) else None
    )


def _whole(value: Any) -> int | None:
    """A number without a fraction, also if it is written with one: 3.0, as JavaScript has it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _link(facet: Any) -> str:
    for feature in items(field(facet, "features")):
        what = kind(feature)
        if what == "link" and (url := http_url(field(feature, "uri"))):
            return url
        if what == "mention" and (account := did(field(feature, "did"))):
            return f"{WEB}/profile/{account}"
        if what == "tag" and (tag := text(field(feature, "tag"), MAX_NAME_BYTES)):
            return f"{WEB}/hashtag/{component(tag)}"
    return ""

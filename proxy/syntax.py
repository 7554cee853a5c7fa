"""The string formats of AT Protocol lexicons (https://atproto.com/specs/lexicon#string-formats).

Each check follows the format's specification where the AppView does, and is as loose as it is elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

MAX_URI_BYTES = 8192
MAX_DID_CHARS = 2048
MAX_HANDLE_CHARS = 253

_HANDLE = re.compile(
    r"([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
)
_DID = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]")
_NSID = re.compile(
    r"[a-zA-Z]([a-zA-Z0-9-]{0,62}[a-zA-Z0-9])?"
    r"(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,62}[a-zA-Z0-9])?)+\.[a-zA-Z][a-zA-Z0-9]{0,62}"
)
_AT_URI = re.compile(
    r"at://(?P<authority>[^/?#\s]+)(?P<path>/(?P<collection>[^/?#\s]+)(/[^/?#\s]+)?)?/?(#/[^\s]*)?"
)
_AT_URI_CHARS = re.compile(r"[a-zA-Z0-9._~:@!$&'()*+,;=%/\\\[\]#?-]*")
_CID = re.compile(r"[a-zA-Z0-9+=]{8,256}")
_LANGUAGE = re.compile(r"[a-zA-Z]{1,8}(-[a-zA-Z0-9]{1,8})*")
_URI = re.compile(r"\w+:(?://)?[^\s/][^\s]*")


def is_handle(value: str) -> bool:
    """Whether `value` is a handle, such as alice.example.com (https://atproto.com/specs/handle)."""
    return len(value) <= MAX_HANDLE_CHARS and _HANDLE.fullmatch(value) is not None


def is_did(value: str) -> bool:
    """Whether `value` is a DID, such as did:plc:abc (https://atproto.com/specs/did)."""
    return len(value) <= MAX_DID_CHARS and _DID.fullmatch(value) is not None


def is_at_identifier(value: str) -> bool:
    """Whether `value` names an account, by handle or DID."""
    return is_did(value) or is_handle(value)


def is_nsid(value: str) -> bool:
    """Whether `value` names a lexicon, such as app.bsky.feed.getFeed (https://atproto.com/specs/nsid)."""
    return len(value) <= 317 and _NSID.fullmatch(value) is not None


def is_at_uri(value: str) -> bool:
    """Whether `value` is an at:// URI of an account, a collection or a record."""
    if len(value) > MAX_URI_BYTES or _AT_URI_CHARS.fullmatch(value) is None:
        return False
    match = _AT_URI.fullmatch(value)
    if match is None or not is_at_identifier(match["authority"]):
        return False
    return match["collection"] is None or is_nsid(match["collection"])


def at_uri_authority(value: str) -> str:
    """The account, handle or DID, that the at:// URI `value` belongs to."""
    return value.removeprefix("at://").partition("/")[0].partition("#")[0]


def with_authority(value: str, authority: str) -> str:
    """The at:// URI `value` under another authority."""
    return f"at://{authority}{value[len('at://') + len(at_uri_authority(value)) :]}"


def is_cid(value: str) -> bool:
    """Whether `value` looks like a CID, as loosely as lexicons check it."""
    return _CID.fullmatch(value) is not None


def is_language(value: str) -> bool:
    """Whether `value` looks like a BCP 47 language tag."""
    return _LANGUAGE.fullmatch(value) is not None


def is_uri(value: str) -> bool:
    """Whether `value` is a URI of any scheme."""
    return len(value) <= MAX_URI_BYTES and _URI.fullmatch(value) is not None


def instant_text(instant: datetime) -> str:
    """`instant` as it is shown and stored: RFC 3339 in UTC with milliseconds."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Format name of the lexicon -> (check, what a value that passes is called).
FORMATS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "at-identifier": (is_at_identifier, "AT identifier"),
    "at-uri": (is_at_uri, "at-uri"),
    "cid": (is_cid, "CID"),
    "did": (is_did, "DID"),
    "handle": (is_handle, "handle"),
    "language": (is_language, "language tag"),
    "uri": (is_uri, "URI"),
}

"""Plain requests, read as they are received: what no parser could take for anything else.

Of everything that could be understood in two ways, or that says more than a GET of a feed does, this knows
nothing; that is for the parser.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_BYTES: Final = 4096

_BEGIN: Final = b"GET /xrpc/"
_VERSION: Final = b" HTTP/1.1\r\n"
# No folded line, no bare LF, no control characters.
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+\r\n")
# The fields that matter. Of those in the first lines a plain head may have some, of the last ones none.
_FIELD = re.compile(
    rb"^(host|accept-encoding|origin|traceparent|x-forwarded-for|cookie|authorization|proxy-authorization"
    rb"|connection|content-length|expect|proxy-connection|transfer-encoding|upgrade"
    rb"|atproto-accept-labelers|if-none-match):([^\r]*)",
    re.IGNORECASE | re.MULTILINE,
)
_READ: Final = frozenset((b"host", b"accept-encoding", b"origin", b"traceparent", b"x-forwarded-for"))
_SECRET: Final = frozenset((b"cookie", b"authorization", b"proxy-authorization"))


class Plain(NamedTuple):
    """What a plain request says: its `target`, and in `fields` what matters by lower-case name.

    `secret`: it contains what is not to be kept.
    """

    target: bytes
    fields: dict[bytes, str]
    secret: bool


def plain(data: bytes) -> Plain | None:
    """The one request that `data` is, if it is plain. Repeated fields are joined (RFC 9110 §5.3)."""
    line_end = data.find(_VERSION, 0, MAX_BYTES)
    if line_end < 0 or not data.startswith(_BEGIN) or len(data) > MAX_BYTES:
        return None
    start = line_end + len(_VERSION)
    if _FIELDS.fullmatch(data, start) is None:
        return None
    fields: dict[bytes, str] = {}
    hosts = 0
    for match in _FIELD.finditer(data, start):
        name, value = match[1].lower(), match[2].strip(b" \t").decode("ascii")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
        hosts += name == b"host"
    if hosts != 1 or not fields.keys() <= _READ | _SECRET:
        return None
    return Plain(data[len(b"GET ") : line_end], fields, not fields.keys().isdisjoint(_SECRET))

"""From a request to its cache key: the same question, however it is written, is the same key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from urllib.parse import parse_qsl, quote

import regex

from proxy.errors import Rejected
from proxy.feeds.methods import METHODS, Method, Param
from proxy.syntax import FORMATS, at_uri_authority, is_did, with_authority

MAX_LABELERS: Final = 20
MAX_LANGUAGES: Final = 2

_BRACKETS = re.compile(r"([A-Za-z]+)\[\d*\]")
_INTEGER = re.compile(r"-?[0-9]{1,12}")
_LABELER = re.compile(r"(did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-])(;\s*redact)?")
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:-[a-z0-9]+)*\s*(?:;\s*q=([01](?:\.\d{0,3})?))?")
_GRAPHEME = regex.compile(r"\X")
# Formats whose values name an account, so that a DID may stand for a handle.
ACCOUNT_FORMATS: Final = frozenset({"at-identifier", "handle"})


@dataclass(frozen=True)
class FeedKey:
    """A question to the AppView in its canonical form.

    `params` are in the order of the lexicon, defaults left out, repeated ones in the client's order.
    `labelers` is the canonical atproto-accept-labelers value, None when the client sent none (an empty one
    asks for no labelers at all). `language` is a reduced accept-language, None where the method ignores it.
    """

    nsid: str
    params: tuple[tuple[str, str], ...]
    labelers: str | None = None
    language: str | None = None

    @cached_property
    def target(self) -> str:
        """Path and query, as they are sent upstream."""
        query = "&".join(f"{name}={quote(value, safe=_SAFE)}" for name, value in self.params)
        return f"/xrpc/{self.nsid}?{query}" if query else f"/xrpc/{self.nsid}"

    @cached_property
    def id(self) -> str:
        """The key as text, one for each distinct question."""
        return f"{self.target}\n{self.labelers}\n{self.language}"

    @cached_property
    def digest(self) -> str:
        """The key in 40 hexadecimal digits, for stores that want short names."""
        return hashlib.blake2b(self.id.encode(), digest_size=20).hexdigest()

    @cached_property
    def fraction(self) -> float:
        """A number in [0, 1) that is this key's own, to spread what would otherwise coincide."""
        return int(self.digest[:13], 16) / 16**13

    @property
    def cursor(self) -> str | None:
        """The cursor asked for, if any."""
        return next((value for name, value in self.params if name == "cursor"), None)

    def accounts(self) -> Iterator[str]:
        """Every account the question names, as handle or DID: actors and the authorities of at:// URIs."""
        known = METHODS[self.nsid].params
        for name, value in self.params:
            format_ = known[name].format
            if format_ in ACCOUNT_FORMATS:
                yield value
            elif format_ == "at-uri":
                yield at_uri_authority(value)

    def at_uris(self) -> Iterator[str]:
        """Every at:// URI the question names."""
        known = METHODS[self.nsid].params
        return (value for name, value in self.params if known[name].format == "at-uri")

    def with_dids(self, dids: Mapping[str, str]) -> FeedKey:
        """The same question with DIDs in place of the handles that `dids` maps."""
        known = METHODS[self.nsid].params
        params = tuple((name, _under_did(known[name], value, dids)) for name, value in self.params)
        return FeedKey(self.nsid, params, self.labelers, self.language)


# What a query value may contain unescaped (RFC 3986 §3.4), short of the characters forms give a meaning.
_SAFE = "/:@!$'()*,;~"


def canonical_key(nsid: str, query: bytes, *, labelers: str | None, language: str | None) -> FeedKey:
    """The key of a request to /xrpc/`nsid`?`query`, with the values of the headers that belong to it.

    Raises Rejected (400 InvalidRequest) for what the lexicon forbids, (404) for a method that is not public.
    """
    method = METHODS.get(nsid)
    if method is None:
        raise Rejected(404, "MethodNotImplemented", f"{nsid} is not a public query method")
    given = _given_values(method, query)
    params: list[tuple[str, str]] = []
    for param in method.params.values():
        values = given.get(param.name, [])
        if not values and param.required:
            raise _invalid(method, f'Missing required key "{param.name}"')
        params.extend((param.name, value) for value in _checked(method, param, values))
    return FeedKey(
        nsid,
        tuple(params),
        _canonical_labelers(labelers),
        _canonical_language(language) if method.uses_language else None,
    )


def key_of_id(text: str) -> FeedKey:
    """The key whose `id` is `text`. Raises Rejected if there is none."""
    target, *headers = text.split("\n")
    path, _, query = target.partition("?")
    labelers, language = (None if value == "None" else value for value in (*headers, None, None)[:2])
    key = canonical_key(path.removeprefix("/xrpc/"), query.encode(), labelers=labelers, language=language)
    if key.id != text:
        raise Rejected(400, "InvalidRequest", "not the canonical form of a question")
    return key


def _given_values(method: Method, query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(query.decode("utf-8"), keep_blank_values=False, errors="strict")
    except ValueError:
        raise _invalid(method, "the query is not UTF-8 text") from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        # Some clients write arrays as uris[] or uris[0]; the AppView reads a single value so as well.
        brackets = _BRACKETS.fullmatch(name)
        param = method.params.get(brackets[1] if brackets else name)
        if param is not None:
            given.setdefault(param.name, []).append(value)
    return given


def _checked(method: Method, param: Param, values: list[str]) -> list[str]:
    if not param.many and len(values) > 1:
        raise _invalid(method, f'Expected one value for "{param.name}" (got {len(values)})')
    if param.max_items is not None and len(values) > param.max_items:
        raise _invalid(method, f"array too big (maximum {param.max_items}, got {len(values)})")
    canonical = [_canonical_value(method, param, value) for value in values]
    return [] if canonical == [param.default] else canonical


def _canonical_value(method: Method, param: Param, value: str) -> str:
    if param.kind == "integer":
        return _canonical_integer(method, param, value)
    if param.kind == "boolean" and value not in ("true", "false"):
        raise _invalid(method, f'Expected boolean value type for "{param.name}" (got "{_excerpt(value)}")')
    if param.format is not None:
        is_valid, called = FORMATS[param.format]
        if not is_valid(value):
            raise _invalid(method, f'Invalid {called} (got "{_excerpt(value)}")')
        return _lower_handle(param, value)
    if param.max_bytes is not None and len(value.encode()) > param.max_bytes:
        raise _invalid(method, f'"{param.name}" must not be longer than {param.max_bytes} bytes')
    if param.max_graphemes is not None and len(_GRAPHEME.findall(value)) > param.max_graphemes:
        raise _invalid(method, f'"{param.name}" must not be longer than {param.max_graphemes} graphemes')
    return value


def _canonical_integer(method: Method, param: Param, value: str) -> str:
    if _INTEGER.fullmatch(value) is None:
        raise _invalid(method, f'Expected integer value type for "{param.name}" (got "{_excerpt(value)}")')
    number = int(value)
    if param.minimum is not None and number < param.minimum:
        raise _invalid(method, f"integer too small (minimum {param.minimum}, got {number})")
    if param.maximum is not None and number > param.maximum:
        raise _invalid(method, f"integer too big (maximum {param.maximum}, got {number})")
    return str(number)


def _lower_handle(param: Param, value: str) -> str:
    """Handles are host names, hence the same in any case; DIDs are not."""
    if param.format in ACCOUNT_FORMATS:
        return value if is_did(value) else value.lower()
    if param.format == "at-uri":
        authority = at_uri_authority(value)
        return value if is_did(authority) else with_authority(value, authority.lower())
    return value


def _under_did(param: Param, value: str, dids: Mapping[str, str]) -> str:
    # resolveHandle asks about the handle itself: its answer under a DID would be an error.
    if param.format == "at-identifier":
        return dids.get(value, value)
    if param.format == "at-uri":
        authority = at_uri_authority(value)
        return with_authority(value, dids.get(authority, authority))
    return value


def _canonical_labelers(header: str | None) -> str | None:
    """Sorted, each DID once. A value that names anything but labelers counts as absent."""
    if header is None or not header.strip():
        return None if header is None else ""
    redacted: dict[str, bool] = {}
    for item in header.split(","):
        match = _LABELER.fullmatch(item.strip())
        if match is None:
            return None
        redacted[match[1]] = redacted.get(match[1], False) or match[2] is not None
    if len(redacted) > MAX_LABELERS:
        raise Rejected(
            400, "InvalidRequest", f"atproto-accept-labelers names more than {MAX_LABELERS} labelers"
        )
    return ",".join(f"{did};redact" if redacted[did] else did for did in sorted(redacted))


def _canonical_language(header: str | None) -> str | None:
    """The languages a client likes best, without regions, so that few distinct keys come of it."""
    weighted: list[tuple[float, str]] = []
    for item in (header or "").lower().split(","):
        match = _LANGUAGE.fullmatch(item.strip())
        if match is not None and (weight := float(match[2] or 1)) > 0:
            weighted.append((-weight, match[1]))
    best = list(dict.fromkeys(language for _, language in sorted(weighted, key=lambda pair: pair[0])))
    return ",".join(best[:MAX_LANGUAGES]) or None


def _invalid(method: Method, fault: str) -> Rejected:
    return Rejected(400, "InvalidRequest", f"Invalid {method.nsid} params: {fault}")


def _excerpt(value: str) -> str:
    return value if len(value) <= 64 else f"{value[:64]}…"

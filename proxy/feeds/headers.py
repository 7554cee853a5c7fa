"""The headers of answers, and the choice of a coding (RFC 9110, 9111, 9211; CORS: the Fetch standard).

Header lists are in ASGI's form: pairs of lower-case name and value, in bytes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.feeds.answer import Answer, Served
from proxy.feeds.entry import CODINGS
from proxy.feeds.freshness import cache_control, updated_at_text
from proxy.feeds.methods import METHODS
from proxy.feeds.wording import Wording

Headers = list[tuple[bytes, bytes]]

# What a script in a page may want to read of an answer.
_EXPOSED = (
    b"age, atproto-content-labelers, cache-control, cache-status, content-encoding, content-length, "
    b"date, etag, feed-updated, feed-updated-at, retry-after, vary"
)
_PREFLIGHT_MAX_AGE_S = b"86400"
_TOKEN_LIST = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_CODING = re.compile(r"([a-z*-]+)\s*(?:;\s*q=([01](?:\.\d{0,3})?))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """What the operator decided about the headers of all answers."""

    client_max_age_s: float
    stale_if_error_s: float
    cors_origins: tuple[str, ...]
    wording: Wording

    @property
    def any_origin(self) -> bool:
        """Whether every site may read our answers."""
        return "*" in self.cors_origins


@functools.lru_cache(256)
def liked_codings(accept_encoding: str | None) -> tuple[str, ...]:
    """The codings that a client likes no less than none at all, best first; of equals, as we like them."""
    weights: dict[str, float] = {}
    for item in (accept_encoding or "").lower().split(","):
        match = _CODING.fullmatch(item.strip())
        if match is not None:
            weights[match[1]] = float(match[2] or 1)
    rest, none_at_all = weights.get("*", 0.0), weights.get("identity", 0.0)
    liked = {coding: weights.get(coding, rest) for coding in CODINGS}
    allowed = [coding for coding, weight in liked.items() if weight > 0 and weight >= none_at_all]
    return tuple(sorted(allowed, key=lambda coding: -liked[coding]))


def accepted_coding(accept_encoding: str | None, available: Mapping[str, bytes]) -> str:
    """The coding of an answer: among those `available` and liked most, the one we like best."""
    return first_coding(liked_codings(accept_encoding), available)


def first_coding(liked: Sequence[str], available: Mapping[str, bytes]) -> str:
    """The first of the `liked` codings that is `available`."""
    return next((coding for coding in liked if coding in available), "identity")


def cors(manner: Manner, origin: str | None) -> Headers:
    """Who may read the answer."""
    if manner.any_origin:
        return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
    if origin is not None and origin.lower() in manner.cors_origins:
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED),
        ]
    return []


def listed_origin(manner: Manner, origin: str | None) -> str | None:
    """`origin` if the answer to it is another than to none."""
    listed = not manner.any_origin and origin is not None and origin.lower() in manner.cors_origins
    return origin if listed else None


def preflight(manner: Manner, origin: str | None, wanted: str | None) -> Headers:
    """The answer to a browser that asks whether it may ask, with the request headers it names."""
    headers = [
        (b"vary", b"Origin, Access-Control-Request-Headers"),
        (b"access-control-max-age", _PREFLIGHT_MAX_AGE_S),
        (b"x-content-type-options", b"nosniff"),
        *cors(manner, origin),
    ]
    if len(headers) > 3:
        headers.append((b"access-control-allow-methods", b"GET, HEAD, OPTIONS"))
        if wanted and len(wanted) <= 2048 and _TOKEN_LIST.fullmatch(wanted.strip()):
            headers.append((b"access-control-allow-headers", wanted.strip().encode("ascii")))
    return headers


def vary(manner: Manner, nsid: str | None) -> bytes:
    """What else of a request chooses the answer to a target."""
    names = [b"Accept-Encoding", b"Atproto-Accept-Labelers"]
    if nsid is not None and nsid in METHODS and METHODS[nsid].uses_language:
        names.append(b"Accept-Language")
    if not manner.any_origin:
        names.append(b"Origin")
    return b", ".join(names)


def cache_status(answer: Answer, now: float) -> bytes:
    """How the answer came about (RFC 9211)."""
    parts = ["feedproxy"]
    ttl_s = 0 if answer.held is None else math.floor(answer.held.ttl_s(now))
    if answer.served in (Served.HIT, Served.STALE_WHILE_REVALIDATE, Served.STALE_IF_ERROR):
        parts += ["hit", f"ttl={ttl_s}"]
        if answer.served is not Served.HIT:
            parts.append(f"detail={answer.served.value}")
    elif answer.fwd is not None:
        parts.append(f"fwd={answer.fwd}")
    if answer.fwd_status is not None:
        parts.append(f"fwd-status={answer.fwd_status}")
    parts += [name for name, said in (("stored", answer.stored), ("collapsed", answer.collapsed)) if said]
    if answer.detail is not None:
        parts.append(f"detail={answer.detail}")
    return "; ".join(parts).encode("ascii")


def freshness_headers(answer: Answer, manner: Manner, *, now: float, wall_now: float) -> Headers:
    """How old the answer is and how long it may be kept; `now` is steady, `wall_now` since 1970."""
    held = answer.held
    if held is None:
        return [(b"cache-control", b"no-store")]
    age_s = held.age_s(now)
    return [
        (b"age", str(math.floor(age_s)).encode("ascii")),
        (b"cache-control", _client_policy(answer, manner, age_s, held.ttl_s(now)).encode("ascii")),
        (b"feed-updated", manner.wording(age_s)),
        (b"feed-updated-at", updated_at_text(wall_now, age_s).encode("ascii")),
    ]


def _client_policy(answer: Answer, manner: Manner, age_s: float, ttl_s: float) -> str:
    held = answer.held
    if held is not None and not answer.stored and answer.served is Served.FORWARDED:
        return "no-store"  # what must not be shared here must not be shared further on
    if held is not None and held.entry.negative:
        return (
            f"public, max-age={math.floor(age_s) + max(0, math.floor(min(ttl_s, manner.client_max_age_s)))}"
        )
    return cache_control(age_s, manner.client_max_age_s, manner.stale_if_error_s)


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether a client's If-None-Match names `etag`, by weak comparison (RFC 9110 §13.1.2)."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return any(tag.strip().removeprefix("W/") == etag for tag in if_none_match.split(","))

"""What a server tells of its own limits (draft-ietf-httpapi-ratelimit-headers, as PDSs have it). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.resilience.backoff import http_date


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """What is left of a server's tightest limit: it is full again in `resets_in_s`."""

    limit: int
    remaining: int
    resets_in_s: float


def points_of(headers: Mapping[str, str], *, wall_now: float) -> Points | None:
    """The limit that RateLimit-* tell, names in lower case; None where they do not.

    The reset is an instant, measured from the answer's own Date.
    """
    limit, remaining, resets_at = (_number(headers, name) for name in ("limit", "remaining", "reset"))
    if limit is None or remaining is None or resets_at is None:
        return None
    now = http_date(headers.get("date")) or wall_now
    return Points(limit=limit, remaining=remaining, resets_in_s=max(0.0, resets_at - now))


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(f"ratelimit-{name}", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None

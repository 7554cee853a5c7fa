"""How long to wait: between the attempts of one forward, and when the upstream says so."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

# However long an upstream asks us to wait, after this it is asked again: its windows are 5 minutes long, and
# a misread date must not silence us for a year.
MAX_NOT_BEFORE_S = 3600.0
# RateLimit-Reset is an instant at Bluesky and a number of seconds in the IETF draft; no window is this long.
_EPOCH_SECONDS_FROM = 1_000_000_000


def full_jitter(attempt: int, *, base_s: float, cap_s: float, draw: float) -> float:
    """Seconds to wait after `attempt` (from 1) failed; `draw` is uniform in [0, 1).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return draw * min(cap_s, base_s * 2.0 ** min(attempt - 1, 32))


def failing_for(failures: int, *, base_s: float, cap_s: float) -> float:
    """Seconds for which a question that failed `failures` times in a row (from 1) is not asked again."""
    return min(cap_s, base_s * 2.0 ** min(failures - 1, 32))


def told_to_wait(status: int, headers: Mapping[str, str], *, wall_now: float) -> float | None:
    """Seconds until the upstream wants to be asked again, None if it did not say.

    Retry-After (seconds or HTTP date, RFC 9110 §10.2.3) of a 429 or 503 counts, else the RateLimit-Reset of a
    429 or of an answer that used up the last request (RateLimit-Remaining: 0). Instants are measured from the
    answer's own Date, so that a clock of ours that is off does no harm. `headers` have lower-case names.
    """
    upstream_now = http_date(headers.get("date")) or wall_now
    if status in (429, 503):
        wait_s = _retry_after(headers.get("retry-after"), upstream_now)
        if wait_s is not None:
            return _bounded(wait_s)
    if status == 429 or headers.get("ratelimit-remaining") == "0":
        wait_s = _rate_limit_reset(headers.get("ratelimit-reset"), upstream_now)
        if wait_s is not None:
            return _bounded(wait_s)
    return None


def _retry_after(value: str | None, upstream_now: float) -> float | None:
    number = _number(value)
    if number is not None:
        return number
    date = http_date(value)
    return None if date is None else date - upstream_now


def _rate_limit_reset(value: str | None, upstream_now: float) -> float | None:
    number = _number(value)
    if number is None:
        return None
    return number - upstream_now if number >= _EPOCH_SECONDS_FROM else number


def _number(value: str | None) -> float | None:
    text = (value or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def http_date(value: str | None) -> float | None:
    """The instant of an HTTP date, in seconds since 1970; None for what is none."""
    if not value:
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None


def _bounded(wait_s: float) -> float:
    return min(max(wait_s, 0.0), MAX_NOT_BEFORE_S)

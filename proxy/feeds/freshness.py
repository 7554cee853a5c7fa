"""When a stored answer is fresh, stale or too old, and how that is told (RFC 9111, RFC 5861, RFC 9211).

All ages are RFC 9111 §4.2.3 current ages in seconds: what the upstream said, plus the time spent here.
"""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass
from datetime import UTC, datetime

JITTER = 0.1
EARLY_SHARE = 0.1


class Freshness(enum.Enum):
    """What may be done with a stored answer of a certain age."""

    FRESH = "fresh"
    EARLY = "early"  # fresh, and time to refresh it before anyone sees it stale
    STALE = "stale"  # serve at once, refresh in the background
    OLD = "old"  # try a refresh for a moment, serve it all the same if that fails
    EXPIRED = "expired"  # as good as nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """For how long past its freshness lifetime an answer may still be served, in seconds (RFC 5861)."""

    stale_while_revalidate_s: float
    stale_if_error_s: float


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Ages at which an answer stops being fresh and at which its early refresh is due, in seconds."""

    fresh_until_s: float
    refresh_at_s: float


def lifetime(
    *, ttl_s: float, fraction: float, initial_age_s: float, cost_s: float, early_draw: float
) -> Lifetime:
    """The lifetime of an answer under the operator's `ttl_s`.

    `fraction` in [0, 1) is the key's own and shifts the TTL by up to ±10 %, so that what was filled together
    does not expire together. `early_draw` is a sample of Exp(1) drawn once when the answer was stored: the
    refresh is due min(cost·draw, 10 % of the TTL) before expiry (XFetch, VLDB 2015), `cost_s` being what the
    last fetch took. An answer that was old when it arrived gets at least a tenth of its TTL here, or each
    request for it would be a refresh.
    """
    own_ttl_s = ttl_s * (1 + JITTER * (2 * fraction - 1))
    fresh_until_s = max(own_ttl_s, initial_age_s + EARLY_SHARE * own_ttl_s)
    return Lifetime(fresh_until_s, fresh_until_s - min(cost_s * early_draw, EARLY_SHARE * own_ttl_s))


def freshness(
    age_s: float, life: Lifetime, windows: Windows, *, negative: bool, from_future: bool
) -> Freshness:
    """What may be done with an answer of `age_s`.

    `negative` answers (400, 404, 410) have no stale windows. An answer `from_future`, stored before a clock
    was set back, is of unknown age: it is served and refreshed.
    """
    past_s = age_s - life.fresh_until_s
    if negative:
        return Freshness.FRESH if past_s < 0 and not from_future else Freshness.EXPIRED
    if from_future:
        past_s = 0.0
    if past_s < 0:
        return Freshness.FRESH if age_s < life.refresh_at_s else Freshness.EARLY
    if past_s < windows.stale_while_revalidate_s:
        return Freshness.STALE
    return Freshness.OLD if past_s < windows.stale_if_error_s else Freshness.EXPIRED


def initial_age(age_header: str | None, delay_s: float) -> float:
    """The corrected age of an answer at its arrival, in seconds: its Age plus the time it took to come.

    RFC 9111 §4.2.3 also has an apparent age, from Date, "if the implementation's clock is reasonably well
    synchronized to the origin server's". Nothing here can know that, and a clock an hour ahead would call
    every new answer an hour old; caches on the way say Age.
    """
    age_value_s = float(age_header) if age_header and age_header.isascii() and age_header.isdigit() else 0.0
    return min(age_value_s, 365 * 86_400.0) + max(0.0, delay_s)


def cache_control(age_s: float, client_max_age_s: float, stale_if_error_s: float) -> str:
    """What clients may do with a copy: recipients subtract Age from max-age, so it is added here."""
    return (
        f"public, max-age={math.floor(age_s) + math.floor(client_max_age_s)}, "
        f"stale-while-revalidate=60, stale-if-error={math.floor(stale_if_error_s)}"
    )


def updated_at_text(wall_now: float, age_s: float) -> str:
    """The instant of the upstream's last confirmation, RFC 3339 in UTC, to the second."""
    return _instant_text(math.floor(wall_now) - math.floor(age_s))


@functools.lru_cache(256)
def _instant_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

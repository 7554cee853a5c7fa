"""How the last hour went: what the host's processes had counted at each step, and the rates between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from proxy.tally import Totals

STEP_S: Final = 5.0
KEPT_S: Final = 3600.0
# Present rates are those of the last minute, or of as much of it as there is.
LATELY_S: Final = 60.0

# As /metrics and its dashboards have it: answered from a copy.
_FROM_COPY: Final = ("hit", "stale", "negative")
_FAILED: Final = ("failed", "refused", "credentials")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What had been counted at an instant: `at` since 1970, `steady_s` by a clock that never steps.

    `copies` are the reads that a stored copy answered, `published` and `failed` attempts to publish.
    """

    at: float
    steady_s: float
    reads: float
    copies: float
    upstream: float
    published: float
    failed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What happened a second up to `at`. `hit_ratio` is None where nobody asked."""

    at: float
    reads: float
    hit_ratio: float | None
    upstream: float
    published: float
    failed: float


def moment_of(totals: Totals, *, at: float, steady_s: float) -> Moment:
    """The numbers of `totals` that are kept."""
    requests, attempts = "feedproxy_requests", "feedproxy_attempts"
    reads = totals.numbers[requests].items()
    return Moment(
        at=at,
        steady_s=steady_s,
        reads=totals.sum(requests),
        copies=sum(count for (_, outcome), count in reads if outcome in _FROM_COPY),
        upstream=totals.sum("feedproxy_upstream_requests"),
        published=totals.sum(attempts, "published"),
        failed=sum(totals.sum(attempts, outcome) for outcome in _FAILED),
    )


def rates_between(before: Moment, after: Moment) -> Rates:
    """What happened between two moments, of which `after` is the later one."""
    passed_s = max(after.steady_s - before.steady_s, 0.001)

    # What another version has counted is forgotten when it goes.
    reads, copies = max(0.0, after.reads - before.reads), max(0.0, after.copies - before.copies)
    return Rates(
        at=after.at,
        reads=reads / passed_s,
        hit_ratio=min(1.0, copies / reads) if reads else None,
        upstream=max(0.0, after.upstream - before.upstream) / passed_s,
        published=max(0.0, after.published - before.published) / passed_s,
        failed=max(0.0, after.failed - before.failed) / passed_s,
    )


class History:
    """Moments of the last hour. `now` takes one: it is called once in STEP_S, or seldomer."""

    def __init__(self, now: Callable[[], Moment], steady: Callable[[], float]) -> None:
        self._now = now
        self._steady = steady
        self._moments: deque[Moment] = deque(maxlen=round(KEPT_S / STEP_S) + 1)

    def beat(self) -> None:
        """Note how things are, if it is time."""
        if not self._moments or self._steady() - self._moments[-1].steady_s >= STEP_S:
            self._moments.append(self._now())

    def steps(self, after_at: float = 0.0) -> Iterator[Rates]:
        """The rates of each step that ended after `after_at`, the oldest first.

        Instants are as the clock on the wall has them now: it may have been set meanwhile.
        """
        now = self._now()
        for before, after in pairwise(self._moments):
            at = now.at - (now.steady_s - after.steady_s)
            if at > after_at + STEP_S / 2:
                yield replace(rates_between(before, after), at=at)

    def lately(self) -> Rates:
        """The rates of the last minute."""
        now = self._now()
        since = now.steady_s - LATELY_S
        before = next((moment for moment in self._moments if moment.steady_s >= since), now)
        return rates_between(before, now)

"""An answer as one process holds it: a stored entry with its age and lifetime."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.feeds.entry import Entry
from proxy.feeds.freshness import Freshness, Lifetime, Windows, freshness


@dataclass(frozen=True, slots=True)
class Held:
    """`entry`, born at the steady instant `born_at`: its age is the time since then.

    `names` are those by which it can be purged, `as_of` the last purge known when its flight began.
    `from_future` marks an answer whose age is unknown because the store's clock was set back since it came.
    """

    entry: Entry
    life: Lifetime
    born_at: float
    names: frozenset[str] = frozenset()
    as_of: int = 0
    from_future: bool = False

    @property
    def version(self) -> tuple[str, float]:
        """What tells it from all others."""
        return self.entry.stamp, self.born_at

    @property
    def asked_at(self) -> float:
        """The steady instant at which the upstream was asked for it."""
        return self.born_at + self.entry.initial_age_s - self.entry.cost_s

    def age_s(self, now: float) -> float:
        """The current age (RFC 9111 §4.2.3), never negative."""
        return max(0.0, now - self.born_at)

    def ttl_s(self, now: float) -> float:
        """Seconds for which it is still fresh; negative when it is stale."""
        return self.life.fresh_until_s - self.age_s(now)

    def freshness(self, now: float, windows: Windows) -> Freshness:
        """What may be done with it at the steady instant `now`."""
        return freshness(
            self.age_s(now),
            self.life,
            windows,
            negative=self.entry.negative,
            from_future=self.from_future,
        )

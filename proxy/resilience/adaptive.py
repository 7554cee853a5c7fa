"""How many calls at a time a server bears, as a pure decision: one more a round, half after refusals.

Each process decides for itself, from its own calls. That needs no agreement: whoever refuses, refuses all of
them, so all of them halve, and senders that behave so come to fair shares of what a server bears (Chiu and
Jain, 1989). What a fleet does have to agree on is the rate, and that it does elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePolicy:
    """`burst` refusals within `burst_s` halve the limit, which is 1 to `ceiling`. One alone says little."""

    ceiling: int
    burst: int = 2
    burst_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveLimit:
    """The state. Instants are of any steady clock."""

    level: float
    halved_at: float = -math.inf
    refused_at: tuple[float, ...] = ()  # lately, and not yet answered by halving

    @property
    def limit(self) -> int:
        """So many calls at a time, from 1."""
        return int(self.level)

    def record(self, *, refused: bool, began_at: float, now: float, policy: AdaptivePolicy) -> AdaptiveLimit:
        """Note how a call ended that began at `began_at`: a whole round of good ones adds one.

        What began before the limit was halved is of the burst that halved it, and says nothing more.
        """
        if began_at < self.halved_at:
            return self
        if not refused:
            return replace(self, level=min(float(policy.ceiling), self.level + 1 / self.level))
        lately = (*(at for at in self.refused_at if now - at <= policy.burst_s), now)
        if len(lately) < policy.burst:
            return replace(self, refused_at=lately)
        return AdaptiveLimit(level=max(1.0, self.level / 2), halved_at=now)

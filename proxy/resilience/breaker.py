"""A circuit breaker as a pure decision: (state, event, now) -> state.

Closed -> open after `threshold` consecutive failures -> half-open after `cooldown_s`, when one probe is let
through -> closed on its success, open again on its failure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Phase(enum.Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Admission(enum.Enum):
    """What a breaker says to one who wants to call."""

    PASS = "pass"  # noqa: S105  (no password)
    PROBE = "probe"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When to open and for how long. `probe_s` is how long a probe may take before another is let through."""

    threshold: int
    cooldown_s: float
    probe_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The state: consecutive failures, and until when (steady seconds) callers are refused."""

    phase: Phase = Phase.CLOSED
    failures: int = 0
    refuse_until: float = 0.0

    def closed_for_s(self, now: float) -> float:
        """Seconds for which callers will be refused; 0 when the next one is let through."""
        return 0.0 if self.phase is Phase.CLOSED else max(0.0, self.refuse_until - now)

    def admit(self, now: float, policy: BreakerPolicy) -> tuple[Breaker, Admission]:
        """Ask to call at `now`."""
        if self.phase is Phase.CLOSED:
            return self, Admission.PASS
        if now < self.refuse_until:
            return self, Admission.REFUSE
        # One probe at a time; should it never report, another follows after probe_s.
        probing = replace(self, phase=Phase.HALF_OPEN, refuse_until=now + policy.probe_s)
        return probing, Admission.PROBE

    def record(self, admission: Admission, now: float, policy: BreakerPolicy, *, alive: bool) -> Breaker:
        """Note how a call that was admitted as `admission` ended."""
        if alive:
            # A call that set out before the breaker opened says nothing of how things are since then.
            return Breaker() if self.phase is Phase.CLOSED or admission is Admission.PROBE else self
        failures = self.failures + 1
        opened = Breaker(phase=Phase.OPEN, failures=failures, refuse_until=now + policy.cooldown_s)
        if admission is Admission.PROBE:
            return opened
        if self.phase is Phase.CLOSED:
            return opened if failures >= policy.threshold else replace(self, failures=failures)
        return self

    def abandon(self, admission: Admission, now: float) -> Breaker:
        """Note that a call that was admitted was never made: a probe's place is free again."""
        if admission is Admission.PROBE and self.phase is Phase.HALF_OPEN:
            return replace(self, phase=Phase.OPEN, refuse_until=now)
        return self

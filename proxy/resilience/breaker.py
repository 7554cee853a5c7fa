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


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a caller was told, to be shown again when the call has ended. `probe` numbers the probes."""

    admission: Admission
    probe: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The state: consecutive failures, until when (steady seconds) callers are refused, the latest probe."""

    phase: Phase = Phase.CLOSED
    failures: int = 0
    refuse_until: float = 0.0
    probe: int = 0

    def closed_for_s(self, now: float) -> float:
        """Seconds for which callers will be refused; 0 when the next one is let through."""
        return 0.0 if self.phase is Phase.CLOSED else max(0.0, self.refuse_until - now)

    def admit(self, now: float, policy: BreakerPolicy) -> tuple[Breaker, Ticket]:
        """Ask to call at `now`."""
        if self.phase is Phase.CLOSED:
            return self, Ticket(Admission.PASS)
        if now < self.refuse_until:
            return self, Ticket(Admission.REFUSE)
        # One probe at a time; should it never report, another follows after probe_s.
        number = self.probe + 1
        probing = replace(self, phase=Phase.HALF_OPEN, refuse_until=now + policy.probe_s, probe=number)
        return probing, Ticket(Admission.PROBE, number)

    def record(self, ticket: Ticket, now: float, policy: BreakerPolicy, *, alive: bool) -> Breaker:
        """Note how a call that was admitted with `ticket` ended."""
        if not self._counts(ticket):
            return self
        if alive:
            return Breaker(probe=self.probe)
        failures = self.failures + 1
        if ticket.admission is Admission.PASS and failures < policy.threshold:
            return replace(self, failures=failures)
        return replace(self, phase=Phase.OPEN, failures=failures, refuse_until=now + policy.cooldown_s)

    def abandon(self, ticket: Ticket, now: float) -> Breaker:
        """Note that a call that was admitted was never made: a probe's place is free again."""
        if ticket.admission is Admission.PROBE and self._counts(ticket):
            return replace(self, phase=Phase.OPEN, refuse_until=now)
        return self

    def _counts(self, ticket: Ticket) -> bool:
        """Whether the ticket is of the present phase.

        A call from before the breaker opened, or a probe that another has replaced, says nothing of how
        things are now.
        """
        if ticket.admission is Admission.PROBE:
            return self.phase is Phase.HALF_OPEN and ticket.probe == self.probe
        return self.phase is Phase.CLOSED

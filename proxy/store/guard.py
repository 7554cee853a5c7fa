"""Leaves a store alone that does not answer, so that nobody waits for it again and again."""

from __future__ import annotations

from typing import Final

from proxy.clock import Clock
from proxy.errors import StoreUnavailable
from proxy.resilience.breaker import Admission, Breaker, BreakerPolicy, Phase, Ticket
from proxy.telemetry import get_logger

BREAKER: Final = BreakerPolicy(threshold=3, cooldown_s=1.0, probe_s=1.0)

_log = get_logger()


class Guard:
    """The circuit breaker of one store; `name` begins the names of what it logs."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._breaker = Breaker()
        self._last_cause: BaseException | None = None

    @property
    def closed(self) -> bool:
        """Whether the next call is let through."""
        return self._breaker.closed_for_s(self._clock.steady()) == 0.0

    def admit(self) -> Ticket:
        """Ask to call; show the ticket when the call has ended. Raises StoreUnavailable."""
        self._breaker, ticket = self._breaker.admit(self._clock.steady(), BREAKER)
        if ticket.admission is Admission.REFUSE:
            raise StoreUnavailable("the store has not been answering")
        return ticket

    def failed(self, ticket: Ticket, cause: BaseException | None, *, alive: bool) -> None:
        """The call has ended without an answer; `alive` as in `record`.

        Calls that travel together fail by one `cause`, and count as one.
        """
        if cause is self._last_cause:
            self.abandon(ticket)
            return
        self._last_cause = cause
        self.record(ticket, alive=alive)

    def record(self, ticket: Ticket, *, alive: bool) -> None:
        """The call has ended; whether the store answered, if only to say no."""
        was = self._breaker.phase
        self._breaker = self._breaker.record(ticket, self._clock.steady(), BREAKER, alive=alive)
        if was is Phase.CLOSED and self._breaker.phase is Phase.OPEN:
            _log.warning(f"{self._name}_unavailable")
        elif was is not Phase.CLOSED and self._breaker.phase is Phase.CLOSED:
            _log.info(f"{self._name}_back")

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waited for the end of the call: it says nothing."""
        self._breaker = self._breaker.abandon(ticket, self._clock.steady())

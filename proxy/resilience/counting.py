"""What is counted at the gate before the read upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

from proxy.clock import Clock
from proxy.errors import BudgetSpent, ShareSpent, UpstreamUnavailable
from proxy.resilience.gate import Gate, Pass
from proxy.resilience.limiter import Asker
from proxy.tally import Tally

# Why a request to the upstream was not made: for want of budget; because its client had its share; or since
# the breaker, or the upstream's own wish, keeps all from asking.
CAUSES: Final = ("budget", "share", "closed")

_T = TypeVar("_T")


class CountedGate:
    """See Gate: `gate`, with waits and refusals counted in this process's place."""

    def __init__(self, gate: Gate, tally: Tally, clock: Clock) -> None:
        self._gate = gate
        self._tally = tally
        self._clock = clock

    def closed_for_s(self) -> float:
        """See Gate."""
        return self._gate.closed_for_s()

    def spent_for_s(self, asker: Asker) -> float:
        """See Gate."""
        return self._gate.spent_for_s(asker)

    def hold_off(self, wait_s: float) -> None:
        """See Gate."""
        self._gate.hold_off(wait_s)

    def forward(self) -> AbstractAsyncContextManager[Pass]:
        """See Gate."""
        return self._refusable(self._gate.forward())

    @asynccontextmanager
    async def attempt(self, leave: Pass, asker: Asker, deadline: float) -> AsyncIterator[None]:
        """See Gate."""
        asked_at = self._clock.steady()
        async with self._refusable(self._gate.attempt(leave, asker, deadline)):
            self._tally.observe("feedproxy_limiter_wait_seconds", self._clock.steady() - asked_at)
            yield

    @asynccontextmanager
    async def _refusable(self, leave: AbstractAsyncContextManager[_T]) -> AsyncIterator[_T]:
        entered = False
        try:
            async with leave as given:
                entered = True
                yield given
        except UpstreamUnavailable as error:
            if not entered:
                self._tally.add("feedproxy_limiter_refusals", _cause_of(error))
            raise


def _cause_of(error: UpstreamUnavailable) -> str:
    if isinstance(error, BudgetSpent):
        return "budget"
    return "share" if isinstance(error, ShareSpent) else "closed"

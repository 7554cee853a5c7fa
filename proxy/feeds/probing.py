"""Ends an outage of which nobody asks: the upstream may be tried again, no reader comes, and so we ask."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.feeds.key import FeedKey
from proxy.feeds.popular import Popular
from proxy.resilience.breaker import Phase

_LOOK_S: Final = 0.5
# Readers come first: for so long nobody must have asked.
_QUIET_S: Final = 1.5
# One question may be in trouble of its own; so many take turns.
_TRIED: Final = 10
# Asked for where nothing is held yet. Whether there is such an account does not matter.
_ANYTHING: Final = FeedKey("app.bsky.actor.getProfile", (("actor", "bsky.app"),))


class Breaking(Protocol):
    """A gate with a breaker."""

    @property
    def phase(self) -> Phase:
        """Where the breaker stands."""

    def closed_for_s(self) -> float:
        """Seconds for which every call would be refused at once."""


class Prober:
    """Refreshes what readers ask for most while the breaker of `gate` lacks but a question to close.

    The breaker lets one probe through in the whole fleet, whoever asks: others are refused as ever.
    """

    def __init__(
        self, gate: Breaking, popular: Popular, refresh: Callable[[FeedKey], Awaitable[None]], clock: Clock
    ) -> None:
        self._gate = gate
        self._popular = popular
        self._refresh = refresh
        self._clock = clock
        self._turns = itertools.count()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        quiet_since: float | None = None
        while True:
            await asyncio.sleep(_LOOK_S)
            now = self._clock.steady()
            if self._gate.phase is Phase.CLOSED or self._gate.closed_for_s() > 0:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            elif now - quiet_since >= _QUIET_S:
                quiet_since = None
                await self._refresh(await self._question())

    async def _question(self) -> FeedKey:
        wanted = await self._popular.most(_TRIED) or [_ANYTHING]
        return wanted[next(self._turns) % len(wanted)]

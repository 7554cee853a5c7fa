"""Who of a worker's deliveries may be worked on: so many in all, and for each PDS as many as it bears.

A delivery whose PDS bears no more stands aside, and takes no place from those of other servers.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from proxy.clock import Clock
from proxy.resilience.adaptive import AdaptiveLimit, AdaptivePolicy
from proxy.tally import OTHER
from proxy.telemetry import get_logger

# So many stand aside at most; then nothing more is leased until some of them have gone.
MAX_ASIDE: Final = 256
# So many hosts are told apart in metrics at most.
MAX_HOSTS: Final = 32

_log = get_logger()


class Entry(enum.Enum):
    """How somebody came to a slot."""

    AT_ONCE = "at once"
    WAITED = "waited"  # things may have changed meanwhile
    CLOSED = "closed"  # there are no more slots: nothing was taken


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    """What is under way to a PDS host, what stands aside, and how much it bears at a time."""

    limit: int
    busy: int
    aside: int


class Slots:
    """The slots of one process. `changed` is set whenever there may be room again."""

    def __init__(self, policy: AdaptivePolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._limits: dict[str, AdaptiveLimit] = {}
        self._busy: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[bool], str] = {}  # to hosts, in the order of their coming
        self._closed = False
        self.changed = asyncio.Event()

    def heard(self, host: str, status: int | None, began_at: float) -> None:
        """A request to `host` that began at `began_at` was answered with `status`; None: not at all."""
        known = self._limits.get(host) or self._unlimited
        refused = status is None or status == 429 or status >= 500
        after = known.record(
            refused=refused, began_at=began_at, now=self._clock.steady(), policy=self._policy
        )
        self._limits[host] = after
        if after.limit < known.limit:
            _log.warning("pool_halved", host=host, limit=after.limit)
        elif after.limit > known.limit:
            self._let_in()

    def loads(self) -> Mapping[str, HostLoad]:
        """Each PDS host that was asked, as it stands."""
        aside = Counter(self._waiting.values())
        return {
            host: HostLoad(limit=known.limit, busy=self._busy[host], aside=aside[host])
            for host, known in self._limits.items()
        }

    def limits(self) -> Mapping[str, int]:
        """How much each PDS host bears at a time, in the order of their coming.

        Of all but the first MAX_HOSTS - 1 only the least, as that of OTHER.
        """
        limits = {host: known.limit for host, known in self._limits.items()}
        if len(limits) < MAX_HOSTS:
            return limits
        named = dict(islice(limits.items(), MAX_HOSTS - 1))
        return named | {OTHER: min(islice(limits.values(), MAX_HOSTS - 1, None))}

    def room(self, taken: int) -> int:
        """How many more may be leased when `taken` are: those that stand aside do not count."""
        aside = sum(self._is_full(host) for host in self._waiting.values())
        return self._policy.ceiling - (taken - aside) if aside < MAX_ASIDE else 0

    async def enter(self, host: str) -> Entry:
        """Take a slot for a call to `host` ("" if it is not known), in the order of coming."""
        if self._closed:
            return Entry.CLOSED
        if self._may_enter(host):
            self._busy[host] += 1
            return Entry.AT_ONCE
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = host
        self.changed.set()
        try:
            return Entry.WAITED if await turn else Entry.CLOSED
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave(host)
            raise
        finally:
            self._waiting.pop(turn, None)

    def leave(self, host: str) -> None:
        """Give the slot back."""
        self._busy[host] -= 1
        self._let_in()

    def close(self) -> None:
        """Nobody is let in any more; who waits is told."""
        self._closed = True
        for turn in list(self._waiting):
            turn.set_result(False)
        self._waiting.clear()

    @property
    def _unlimited(self) -> AdaptiveLimit:
        return AdaptiveLimit(level=float(self._policy.ceiling))

    def _is_full(self, host: str) -> bool:
        return self._busy[host] >= self._limits.get(host, self._unlimited).limit

    def _may_enter(self, host: str) -> bool:
        return self._busy.total() < self._policy.ceiling and not self._is_full(host)

    def _let_in(self) -> None:
        for turn, host in list(self._waiting.items()):
            if not turn.done() and self._may_enter(host):
                self._busy[host] += 1
                del self._waiting[turn]
                turn.set_result(True)
        self.changed.set()

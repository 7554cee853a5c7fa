"""What readers of the fleet ask for most, so that a new process may hold it before it is asked for.

Counting costs a hit next to nothing: each process counts for itself, not every hit but about one a second
of each question, and tells the store its highest counts now and then. They halve every hour.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from typing import Final

from proxy.clock import Clock
from proxy.errors import Rejected, StoreError, StoreRefused
from proxy.feeds.key import FeedKey, key_of_id
from proxy.store.link import Link, Run
from proxy.store.scripts import script

_COUNT: Final = script("popular")
_MOST: Final = script("most_popular")

PERIOD_S: Final = 10.0
HALF_LIFE_MS: Final = 3_600_000
# Questions that are counted in a period, that are told after it, and that the fleet remembers.
_MAX_COUNTED: Final = 4096
_MAX_TOLD: Final = 100
_MAX_KEPT: Final = 1000
# Begins a stored question: the format's number.
_FORMAT: Final = "1 "


class Popular:
    """Counts for one process; what it counted lives under `prefix`."""

    def __init__(self, link: Link, clock: Clock, *, prefix: str) -> None:
        self._link = link
        self._clock = clock
        self._keys = [f"{prefix}popular", f"{prefix}halved"]
        self._counts: Counter[str] = Counter()
        self._tell_at = clock.steady() + PERIOD_S

    def count(self, key: FeedKey) -> None:
        """A reader was given the answer to `key`."""
        if key.id in self._counts or len(self._counts) < _MAX_COUNTED:
            self._counts[key.id] += 1

    async def beat(self, run: Run) -> None:
        """Tell what was counted, if it is time to. Raises StoreUnavailable."""
        if self._clock.steady() < self._tell_at or not self._counts:
            return
        counts, self._counts = self._counts, Counter()
        self._tell_at = self._clock.steady() + PERIOD_S
        highest = heapq.nlargest(_MAX_TOLD, counts.items(), key=lambda item: item[1])
        told = [part for question, count in highest for part in (f"{_FORMAT}{question}", count)]
        with contextlib.suppress(StoreRefused):  # it is full, or may only be read
            await run(_COUNT, self._keys, [_MAX_KEPT, HALF_LIFE_MS, *told])

    async def most(self, count: int) -> list[FeedKey]:
        """The `count` questions that are asked most, the first first; none while the store is away."""
        try:
            stored: list[bytes] = await self._link.run(_MOST, self._keys[:1], [count])
        except StoreError:
            return []
        found = []
        for text in stored:
            with contextlib.suppress(Rejected, UnicodeDecodeError):
                found.append(key_of_id(text.decode().removeprefix(_FORMAT)))
        return found

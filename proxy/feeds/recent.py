"""A bounded set that remembers what was added last."""

from __future__ import annotations

from collections import OrderedDict

from proxy.clock import Clock


class RecentSet:
    """Texts added within the last `keep_s` seconds, at most `max_items` of them."""

    def __init__(self, clock: Clock, *, max_items: int, keep_s: float) -> None:
        self._clock = clock
        self._max_items = max_items
        self._keep_s = keep_s
        self._added_at: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, item: object) -> bool:
        added_at = self._added_at.get(item) if isinstance(item, str) else None
        return added_at is not None and self._clock.steady() - added_at < self._keep_s

    def __len__(self) -> int:
        self._forget()
        return len(self._added_at)

    def add(self, item: str) -> None:
        """Remember `item` from now on, in place of the oldest if there are too many."""
        self._added_at[item] = self._clock.steady()
        self._added_at.move_to_end(item)
        self._forget()

    def _forget(self) -> None:
        oldest_kept_at = self._clock.steady() - self._keep_s
        while self._added_at:
            added_at = next(iter(self._added_at.values()))
            if len(self._added_at) <= self._max_items and added_at > oldest_kept_at:
                return
            self._added_at.popitem(last=False)

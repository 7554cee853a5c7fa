"""Level 1: what this process holds, bounded in bytes, not flushed out by a scan.

S3-FIFO (Yang et al., SOSP 2023): newcomers enter a small queue and must be asked for again before they may
stay, so that a crawler's one-time questions push out nothing that readers come back for. A hit writes one
attribute.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")

_SMALL_SHARE = 0.1
_MAX_HITS = 3
# What a key costs besides its value: the slot, the dictionary entries, the key's text.
_OVERHEAD_BYTES = 400


@dataclass(slots=True)
class _Slot(Generic[V]):
    value: V
    size_bytes: int
    hits: int = 0


class MemoryCache(Generic[V]):
    """A mapping from text to values of a stated size that forgets the least useful beyond `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.changes = 0  # how often what is here became another
        self._max_bytes = max_bytes
        self._small: OrderedDict[str, _Slot[V]] = OrderedDict()
        self._main: OrderedDict[str, _Slot[V]] = OrderedDict()
        self._small_bytes = 0
        self._main_bytes = 0
        # Keys that were put out of the small queue lately: asked for again, they go to the main one.
        self._ghosts: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    @property
    def max_bytes(self) -> int:
        """The room there is."""
        return self._max_bytes

    @property
    def size_bytes(self) -> int:
        """What is held, overhead included."""
        return self._small_bytes + self._main_bytes

    def get(self, key: str) -> V | None:
        """The value of `key`, counted as a use of it."""
        slot = self._main.get(key) or self._small.get(key)
        if slot is None:
            return None
        if slot.hits < _MAX_HITS:
            slot.hits += 1
        return slot.value

    def peek(self, key: str) -> V | None:
        """The value of `key`, which is no use of it."""
        slot = self._main.get(key) or self._small.get(key)
        return None if slot is None else slot.value

    def put(self, key: str, value: V, size_bytes: int) -> None:
        """Hold `value`, in place of what `key` had. A value larger than a quarter of the room is not held."""
        self.changes += 1
        hits = self._take_out(key)
        size_bytes += _OVERHEAD_BYTES + len(key)
        if size_bytes > self._max_bytes // 4:
            return
        known = hits is not None or key in self._ghosts
        self._ghosts.pop(key, None)
        slot = _Slot(value, size_bytes, hits or 0)
        if known:
            self._main[key] = slot
            self._main_bytes += size_bytes
        else:
            self._small[key] = slot
            self._small_bytes += size_bytes
        while self.size_bytes > self._max_bytes:
            self._evict()

    def discard_all(self, unwanted: Callable[[V], bool]) -> None:
        """Forget every value that is `unwanted`."""
        self.changes += 1
        for queue in (self._small, self._main):
            for key in [key for key, slot in queue.items() if unwanted(slot.value)]:
                self._take_out(key)

    def _take_out(self, key: str) -> int | None:
        """Remove `key`; its hits, None if it was not there."""
        if (slot := self._small.pop(key, None)) is not None:
            self._small_bytes -= slot.size_bytes
            return slot.hits
        if (slot := self._main.pop(key, None)) is not None:
            self._main_bytes -= slot.size_bytes
            return slot.hits
        return None

    def _evict(self) -> None:
        if self._small and (self._small_bytes > self._max_bytes * _SMALL_SHARE or not self._main):
            self._evict_small()
        else:
            self._evict_main()

    def _evict_small(self) -> None:
        key, slot = self._small.popitem(last=False)
        self._small_bytes -= slot.size_bytes
        if slot.hits > 0:
            slot.hits = 0
            self._main[key] = slot
            self._main_bytes += slot.size_bytes
            return
        self._ghosts[key] = None
        while len(self._ghosts) > max(len(self), 64):
            self._ghosts.popitem(last=False)

    def _evict_main(self) -> None:
        key, slot = self._main.popitem(last=False)
        if slot.hits > 0:
            slot.hits -= 1
            self._main[key] = slot
            return
        self._main_bytes -= slot.size_bytes

"""Level 1 never exceeds its bound, never mixes up keys, and is not flushed out by a scan."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.feeds.memory import MemoryCache

keys = st.integers(0, 30).map(str)


class MemoryMachine(RuleBasedStateMachine):
    """Against a dictionary that forgets nothing: whatever is found is what was put last."""

    def __init__(self):
        super().__init__()
        self.cache = MemoryCache[int](10_000)
        self.model = {}
        self.number = 0

    @rule(key=keys, size=st.integers(0, 4000))
    def put(self, key, size):
        self.number += 1
        self.cache.put(key, self.number, size)
        self.model[key] = self.number

    @rule(key=keys)
    def get(self, key):
        found = self.cache.get(key)
        assert found is None or found == self.model[key]

    @rule(remainder=st.integers(0, 3))
    def discard_all(self, remainder):
        self.cache.discard_all(lambda number: number % 3 == remainder or remainder == 3)
        for key, number in list(self.model.items()):
            if number % 3 == remainder or remainder == 3:
                del self.model[key]
                assert self.cache.get(key) is None
        if remainder == 3:
            assert self.cache.size_bytes == 0
            assert len(self.cache) == 0

    @invariant()
    def bounded(self):
        assert 0 <= self.cache.size_bytes <= 10_000
        assert (self.cache.size_bytes == 0) == (len(self.cache) == 0)


TestMemory = MemoryMachine.TestCase


def test_a_scan_does_not_flush_what_is_in_use():
    cache = MemoryCache[int](200_000)
    popular = [f"popular{number}" for number in range(50)]
    for key in popular:
        cache.put(key, 1, 1000)
        cache.get(key)
    for number in range(10_000):
        cache.put(f"scan{number}", 2, 1000)
        if number % 20 == 0:
            for key in popular:
                cache.get(key)
    assert sum(cache.get(key) is not None for key in popular) == 50


def test_what_is_used_no_more_makes_room():
    cache = MemoryCache[int](100_000)
    for key in ("old1", "old2"):
        cache.put(key, 1, 20_000)
        cache.get(key)
    for number in range(200):
        for _ in range(2):
            cache.put(f"new{number % 20}", number, 4000)
            cache.get(f"new{number % 20}")
    assert cache.get("old1") is None


def test_what_is_larger_than_a_quarter_is_not_held():
    cache = MemoryCache[int](10_000)
    cache.put("a", 1, 100)
    cache.put("a", 2, 5000)
    assert cache.get("a") is None
    assert cache.size_bytes == 0

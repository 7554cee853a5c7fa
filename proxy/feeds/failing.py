"""Questions that the upstream lately failed to answer: for a while they are not asked again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.errors import UpstreamError
from proxy.resilience.backoff import failing_for

FIRST_S: Final = 5.0
MAX_KEYS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Failing:
    """How a question failed last, how often in a row (from 1), and until when it is left alone (steady)."""

    error: UpstreamError
    failures: int
    until: float


class FailingKeys:
    """Failing questions by key: 5 s after the first failure, doubling to `longest_s`."""

    def __init__(self, clock: Clock, *, longest_s: float) -> None:
        self._clock = clock
        self._longest_s = longest_s
        self._by_key: OrderedDict[str, Failing] = OrderedDict()

    def current(self, key_id: str) -> Failing | None:
        """The failure that still stands for `key_id`, None if it may be asked."""
        failing = self._by_key.get(key_id)
        return failing if failing is not None and self._clock.steady() < failing.until else None

    def note(self, key_id: str, error: UpstreamError) -> None:
        """`key_id` failed with `error`."""
        last = self._by_key.pop(key_id, None)
        now = self._clock.steady()
        # Long after a failure ended, the next one is the first of a new row.
        in_a_row = last is not None and now < last.until + self._longest_s
        failures = last.failures + 1 if last is not None and in_a_row else 1
        until = now + failing_for(failures, base_s=min(FIRST_S, self._longest_s), cap_s=self._longest_s)
        self._by_key[key_id] = Failing(error, failures, until)
        self._forget(now)

    def hold(self, key_id: str, error: UpstreamError, left_s: float) -> None:
        """The fleet leaves `key_id` alone for `left_s` seconds, because of `error`."""
        last = self._by_key.pop(key_id, None)
        now = self._clock.steady()
        self._by_key[key_id] = Failing(error, last.failures if last is not None else 1, now + left_s)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop from the front, where the oldest are, what is of no more use."""
        while self._by_key:
            oldest = next(iter(self._by_key.values()))
            if len(self._by_key) <= MAX_KEYS and now < oldest.until + self._longest_s:
                return
            self._by_key.popitem(last=False)

    def clear(self, key_id: str) -> None:
        """`key_id` was answered."""
        self._by_key.pop(key_id, None)

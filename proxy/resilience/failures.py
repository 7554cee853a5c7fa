"""Who guesses secrets is refused for a while: a limit on failures for each client, kept in this process."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from proxy.clock import Clock
from proxy.resilience.limiter import Bucket, Rate

MAX_CLIENTS: Final = 10_000


class FailureLimit:
    """Counts failures of clients, of which the least recent are forgotten when there are too many."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, client: str) -> float:
        """Seconds for which `client` is refused; 0.0 if it may try."""
        bucket = self._buckets.get(client)
        return 0.0 if bucket is None else bucket.wait_s(self._rate, self._clock.steady())

    def count(self, client: str) -> None:
        """Note a failure of `client`."""
        now = self._clock.steady()
        bucket = self._buckets.get(client) or Bucket(float(self._rate.burst), now)
        self._buckets[client], _ = bucket.take(self._rate, now)
        self._buckets.move_to_end(client)
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)

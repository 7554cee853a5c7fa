"""What each client has caused upstream in the last minute, and whether it may cause more.

The decision is here. A process that is alone counts with `Shares`, the fleet by the script of its gate.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from proxy.errors import ShareSpent

WINDOW_S: Final = 60.0
# Of so many clients is known at a time what they have spent; the least recent is forgotten first.
MAX_CLIENTS: Final = 10_000


def spent_for_s(spent_at: Sequence[float], limit: int, now: float) -> float:
    """Seconds until a client that was let go at the instants `spent_at`, in their order, may go again.

    0 if it may now: any window of a minute has at most `limit` of them.
    """
    if len(spent_at) < limit:
        return 0.0
    return max(0.0, spent_at[len(spent_at) - limit] + WINDOW_S - now)


def share_spent(wait_s: float) -> ShareSpent:
    """What a client is told that has spent its share."""
    return ShareSpent(
        "this client has asked for too many feeds that nobody else asks for", retry_after_s=max(1.0, wait_s)
    )


class Shares:
    """The counts of one process. Instants are steady."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._spent_at: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spent_at)

    def spent_for_s(self, client: str, now: float) -> float:
        """Seconds until `client` may go again, 0 if it may now."""
        return spent_for_s(self._spent_at.get(client, ()), self._limit, now)

    def take(self, client: str, now: float) -> None:
        """`client` goes now."""
        spent_at = self._spent_at.setdefault(client, deque(maxlen=self._limit))
        spent_at.append(now)
        self._spent_at.move_to_end(client)
        self._forget(now)

    def give_back(self, client: str, taken_at: float) -> None:
        """It did not go after all."""
        spent_at = self._spent_at.get(client)
        if spent_at is not None and taken_at in spent_at:
            spent_at.remove(taken_at)

    def _forget(self, now: float) -> None:
        """Drop from the front, where the least recent are, who has nothing left to be counted."""
        while self._spent_at:
            spent_at = next(iter(self._spent_at.values()))
            if len(self._spent_at) <= MAX_CLIENTS and spent_at and now - spent_at[-1] < WINDOW_S:
                return
            self._spent_at.popitem(last=False)


class Spenders:
    """Clients that were told to come back later, until when (steady): of them nobody need be asked again."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def note(self, client: str, until: float) -> None:
        """`client` may not go before `until`."""
        self._until[client] = until
        self._until.move_to_end(client)
        if len(self._until) > MAX_CLIENTS:
            self._until.popitem(last=False)

    def left_s(self, client: str, now: float) -> float:
        """Seconds for which `client` is known to be refused."""
        left_s = self._until.get(client, now) - now
        if left_s <= 0:
            self._until.pop(client, None)
        return max(0.0, left_s)

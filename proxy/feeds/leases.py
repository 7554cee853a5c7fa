"""One asks for the fleet: the leader holds a lease on the question, the others follow it.

Followers hear of the end of a flight, and look for themselves now and then: news can be lost, leaders die.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Iterator
from typing import Final

from proxy.clock import Clock
from proxy.errors import UpstreamTimeout
from proxy.feeds.key import FeedKey
from proxy.feeds.shared import (
    KIND,
    Lead,
    Led,
    LeftAlone,
    Loaded,
    SharedCache,
    Unshareable,
    error_from_text,
)
from proxy.resilience.limiter import Rank
from proxy.store.link import Run
from proxy.store.news import News

# Followers look again at least so often: those for whom a client waits, and refreshes.
_POLL_S: Final = 1.0
_REFRESH_POLL_S: Final = 4.0
# They do not all look in the same moment.
_JITTER_S: Final = 0.05

_Waiter = asyncio.Future[str | None]
Found = Loaded | Lead | LeftAlone | Unshareable


class Leases:
    """Leads and follows for one process."""

    def __init__(self, shared: SharedCache, news: News, clock: Clock, *, draw: random.Random) -> None:
        self._shared = shared
        self._clock = clock
        self._draw = draw
        self._held: dict[str, tuple[FeedKey, Lead]] = {}  # by token
        self._renewable: set[str] = set()  # held since the last beat at least
        self._followed: dict[str, set[_Waiter]] = {}  # by digest
        news.subscribe(KIND, self._heard)

    async def seek(
        self,
        key: FeedKey,
        *,
        known_stamp: str,
        floor: int,
        rank: Rank,
        deadline: float,
        may_lead: bool = True,
    ) -> tuple[Found, bool]:
        """An answer other than the one with `known_stamp`, or leave to ask for it; and whether we followed.

        Who may not lead has leave without a lease when there is nobody to follow.
        Waits for whoever leads until the steady instant `deadline`. Raises UpstreamTimeout.
        """
        followed = False
        while True:
            with self._following(key.digest) as news:
                token = uuid.uuid4().hex if may_lead else ""
                seen = await self._shared.look(key, token, known_stamp=known_stamp, floor=floor)
                if not isinstance(seen, Led):
                    return self._taken(key, seen), followed
                followed = True
                told = await self._wait(news, self._patience_s(seen, rank), deadline)
            if told:
                return LeftAlone(error_from_text(told), 0.0), followed

    def drop(self, lead: Lead) -> None:
        """Renew the lease no more: its flight has landed."""
        self._held.pop(lead.token, None)

    async def beat(self, run: Run) -> None:
        """Renew every lease that is not new: most flights land before theirs needs it. Raises StoreError."""
        held = [self._held[token] for token in self._renewable & self._held.keys()]
        self._renewable = set(self._held)
        renewals = (self._shared.renew(run, key, lead) for key, lead in held)
        renewed = await asyncio.gather(*renewals, return_exceptions=True)
        for (_, lead), outcome in zip(held, renewed, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            if not outcome:
                # Another leads since; our own clients are answered all the same.
                self.drop(lead)

    def _taken(self, key: FeedKey, seen: Found) -> Found:
        if isinstance(seen, Lead) and seen.token:
            self._held[seen.token] = (key, seen)
        return seen

    def _patience_s(self, led: Led, rank: Rank) -> float:
        longest_s = _REFRESH_POLL_S if rank is Rank.REFRESH else min(led.left_s, _POLL_S)
        return longest_s + self._draw.uniform(0, _JITTER_S)

    async def _wait(self, news: _Waiter, patience_s: float, deadline: float) -> str | None:
        left_s = deadline - self._clock.steady()
        if left_s <= 0:
            raise UpstreamTimeout("the upstream did not answer in time")
        await asyncio.wait({news}, timeout=min(patience_s, left_s))
        return news.result() if news.done() else None

    @contextlib.contextmanager
    def _following(self, digest: str) -> Iterator[_Waiter]:
        """What is told of the flight from now on, which is before anyone looks."""
        news: _Waiter = asyncio.get_running_loop().create_future()
        waiters = self._followed.setdefault(digest, set())
        waiters.add(news)
        try:
            yield news
        finally:
            waiters.discard(news)
            if not waiters and self._followed.get(digest) is waiters:
                del self._followed[digest]

    def _heard(self, text: str | None) -> None:
        if text is None:
            for waiters in self._followed.values():
                _tell(waiters, None)
            return
        digest, _, told = text.partition(" ")
        _tell(self._followed.get(digest, set()), told or None)


def _tell(waiters: set[_Waiter], told: str | None) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(told)

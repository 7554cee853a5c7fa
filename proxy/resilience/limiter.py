"""A rate limit and who goes first under it, as pure decisions: a token bucket and a choice of ranks."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Rank(enum.IntEnum):
    """Why the upstream is asked; while several wait, it decides who goes first."""

    REFRESH = 0  # of a key in use
    MISS = 1  # a question not answered before
    DOUBTFUL = 2  # a miss whose cursor no stored answer has handed out


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants a turn.

    `client` is for whom: the misses of different clients take turns. `pays`: it has a share, of which this
    turn is a part.
    """

    rank: Rank
    client: str = ""
    pays: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`per_s` requests a second in the long run, `burst` at once after a pause."""

    per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens at hand at the steady instant `at`."""

    tokens: float
    at: float

    def refilled(self, rate: Rate, now: float) -> Bucket:
        """The bucket as it is at `now`."""
        gained = max(0.0, now - self.at) * rate.per_s
        return Bucket(min(float(rate.burst), self.tokens + gained), max(now, self.at))

    def take(self, rate: Rate, now: float) -> tuple[Bucket, bool]:
        """Take one token at `now`, if there is one."""
        bucket = self.refilled(rate, now)
        if bucket.tokens < 1.0:
            return bucket, False
        return Bucket(bucket.tokens - 1.0, bucket.at), True

    def wait_s(self, rate: Rate, now: float, ahead: int = 0) -> float:
        """Seconds until there is a token for one who has `ahead` others before it."""
        return max(0.0, (ahead + 1 - self.refilled(rate, now).tokens) / rate.per_s)


def next_rank(waiting: Mapping[Rank, int], last: Rank) -> Rank | None:
    """Whose turn it is, None if nobody waits.

    Refreshes and misses take turns when both wait, so each keeps half of the rate when it needs it and has
    all of it when the other does not. The doubtful have what is left over. `last` is who went last.
    """
    refreshes, misses = waiting.get(Rank.REFRESH, 0), waiting.get(Rank.MISS, 0)
    if refreshes and misses:
        return Rank.MISS if last is Rank.REFRESH else Rank.REFRESH
    if refreshes:
        return Rank.REFRESH
    if misses:
        return Rank.MISS
    return Rank.DOUBTFUL if waiting.get(Rank.DOUBTFUL, 0) else None


def ahead_of(rank: Rank, waiting: Mapping[Rank, int], last: Rank, place: int | None = None) -> int:
    """How many of those `waiting` go before one of `rank`, if nobody else comes.

    `place` counts from 0 within the rank; without it, it is the next newcomer's. `last` is who went last.
    """
    place = waiting.get(rank, 0) if place is None else place
    refreshes, misses = waiting.get(Rank.REFRESH, 0), waiting.get(Rank.MISS, 0)
    if rank is Rank.REFRESH:
        return place + min(misses, place + (last is Rank.REFRESH))
    if rank is Rank.MISS:
        return place + min(refreshes, place + (last is not Rank.REFRESH))
    return place + refreshes + misses

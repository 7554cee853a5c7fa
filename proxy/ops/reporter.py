"""Makes reports, on demand: while nobody asks, nothing is asked of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from proxy.clock import Clock
from proxy.errors import StoreError
from proxy.ops.report import PostReport, ReadReport, Report
from proxy.syndication.durability import durability_of
from proxy.syndication.standing import QueueStanding
from proxy.tally import Totals

# A question to the store is not repeated sooner, and nobody waits longer for its answer.
AGAIN_S: Final = 1.0
PATIENCE_S: Final = 1.0
# What the store says of itself changes seldom, but a full disk is to be seen within ten seconds.
ABOUT_AGAIN_S: Final = 2.0

T = TypeVar("T")


class Asked(Generic[T]):
    """What a question to the store was last answered; asked anew when it is old, by one for all who ask."""

    def __init__(self, ask: Callable[[], Awaitable[T]], clock: Clock, *, again_s: float) -> None:
        self._ask = ask
        self._clock = clock
        self._again_s = again_s
        self._asking: asyncio.Task[None] | None = None
        self._asked_at: float | None = None
        self._answer: T | None = None
        self.trouble = ""  # why there is no answer

    async def now(self) -> T | None:
        """The answer; None when there was none, or none within PATIENCE_S."""
        now = self._clock.steady()
        if self._asking is None and (self._asked_at is None or now - self._asked_at >= self._again_s):
            self._asking = asyncio.create_task(self._look(), name="report")
        if self._asking is not None:
            done, _ = await asyncio.wait([self._asking], timeout=PATIENCE_S)
            if not done:
                self.trouble = "it does not answer in time"
                return None
        return self._answer

    async def close(self) -> None:
        """Let what is under way come to its end: a call is never cut off half-way."""
        if self._asking is not None:
            await asyncio.wait([self._asking])

    async def _look(self) -> None:
        try:
            self._answer, self.trouble = await self._ask(), ""
        except StoreError as error:
            self._answer, self.trouble = None, str(error)
        finally:
            self._asked_at, self._asking = self._clock.steady(), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a report comes from. `beat` brings this process's own gauges up to date."""

    role: Literal["web", "worker"]
    clock: Clock
    beat: Callable[[], None]
    totals: Callable[[], Totals]
    read: Callable[[Mapping[str, str] | None], ReadReport] | None
    cache_about: Asked[Mapping[str, str]] | None
    standing: Asked[QueueStanding]
    about: Asked[Mapping[str, str]]
    accounts: Callable[[], tuple[Sequence[str], Sequence[str]]]  # names, and what is missing
    incidents: Callable[[], tuple[str, ...]]
    expected: Callable[[], int]


class Reporter:
    """Makes reports from `sources`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def report(self) -> Report:
        """How everything stands, at most a second ago (what the store says of itself, two)."""
        own = self._sources
        cache, standing, about = await asyncio.gather(
            own.cache_about.now() if own.cache_about is not None else _nothing(),
            own.standing.now(),
            own.about.now(),
        )
        own.beat()
        accounts, missing = own.accounts()
        return Report(
            at=own.clock.wall(),
            role=own.role,
            totals=own.totals(),
            read=own.read(about if own.cache_about is None else cache) if own.read is not None else None,
            posts=PostReport(
                standing=standing,
                trouble=own.standing.trouble if standing is None else "",
                about=about,
                durability="" if about is None else durability_of(about),
                accounts=tuple(accounts),
                missing=tuple(missing),
            ),
            incidents=own.incidents(),
            expected=own.expected(),
        )

    async def close(self) -> None:
        """Wait for what is still asked."""
        own = self._sources
        for asked in (own.cache_about, own.standing, own.about):
            if asked is not None:
                await asked.close()


async def _nothing() -> None:
    return None

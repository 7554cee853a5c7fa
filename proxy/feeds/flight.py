"""Collapsed forwarding: whoever asks the same question at the same time shares one flight.

The flight is a task that the application owns; all who ask, the first included, only wait for it. So nobody
who leaves takes the answer from the others, and nothing cancels a request that is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from proxy.clock import Clock
from proxy.errors import UpstreamTimeout, UpstreamUnavailable
from proxy.telemetry import get_logger

T = TypeVar("T")

# As many as there may be connections: a front page's worth of readers for one feed.
MAX_WAITERS: Final = 10_000
# So many are woken before others get a turn of the event loop.
_WAKE_BATCH: Final = 256

_log = get_logger()


@dataclass(slots=True, eq=False)
class Flight(Generic[T]):
    """One question under way. `outcome` is set before anyone is woken."""

    key: str
    started_at: float
    task: asyncio.Task[None] | None = None
    outcome: T | None = None
    # Each waiter has a future of its own: one shared would be cancelled by the first who leaves.
    waiters: set[asyncio.Future[None]] = field(default_factory=set)


class Flights(Generic[T]):
    """The flights of one kind in this process.

    `crashed` turns an unforeseen exception into an outcome, so that waiters get an answer of their own
    instead of one shared exception. `after` is what remains to be done once everyone has been woken. A flight
    older than `max_age_s` is left to itself: newcomers start another.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        max_age_s: float,
        crashed: Callable[[Exception], T],
        after: Callable[[T], Awaitable[None]] | None = None,
    ) -> None:
        self._clock = clock
        self._max_age_s = max_age_s
        self._crashed = crashed
        self._after = after
        self._by_key: dict[str, Flight[T]] = {}  # newcomers join these
        self._flying: set[Flight[T]] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # strong references: the loop keeps weak ones
        self._waiting = 0
        self._given_up = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def waiting(self) -> int:
        """How many wait for the outcome of a flight."""
        return self._waiting

    def join(self, key: str, fly: Callable[[], Awaitable[T]]) -> tuple[Flight[T], bool]:
        """The flight for `key`, and whether it was started just now (with `fly`)."""
        flight = self._by_key.get(key)
        now = self._clock.steady()
        if flight is not None and now - flight.started_at <= self._max_age_s:
            return flight, False
        flight = Flight(key, now)
        self._by_key[key] = flight
        flight.task = asyncio.create_task(self._run(flight, fly), name=f"flight {key[:80]}")
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        return flight, True

    async def wait(self, flight: Flight[T], timeout_s: float) -> T:
        """The outcome of `flight`.

        Raises UpstreamTimeout after `timeout_s`, UpstreamUnavailable when too many wait already.
        """
        if flight.outcome is not None:
            return flight.outcome
        if self._given_up:
            raise UpstreamTimeout("this process is about to end")
        if self._waiting >= MAX_WAITERS:
            raise UpstreamUnavailable("too many requests wait for the upstream", retry_after_s=1.0)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        flight.waiters.add(waiter)
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass  # the outcome may have come in the very instant in which the time was up
        finally:
            self._waiting -= 1
            flight.waiters.discard(waiter)
        if flight.outcome is None:
            raise UpstreamTimeout("the upstream did not answer in time")
        return flight.outcome

    def detach(self) -> None:
        """Let nobody join the flights there are: what they bring may be too old for newcomers."""
        self._by_key.clear()

    def give_up(self) -> None:
        """Wake everyone who waits, with or without an outcome, and let nobody wait: there is no more time."""
        self._given_up = True
        for flight in self._flying:
            for waiter in flight.waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def drain(self, grace_s: float) -> None:
        """Let flights land for `grace_s` seconds, then end the rest. For shutdown, when nobody waits."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, flight: Flight[T], fly: Callable[[], Awaitable[T]]) -> None:
        self._flying.add(flight)
        crash: Exception | None = None
        try:
            flight.outcome = await fly()
        except Exception as error:  # noqa: BLE001  (the last resort: a bug must not leave waiters hanging)
            crash = error
            flight.outcome = self._crashed(error)
        finally:
            # Off the table before anyone is woken: who comes now starts anew or finds the stored answer.
            if self._by_key.get(flight.key) is flight:
                del self._by_key[flight.key]
            self._flying.discard(flight)
        await _wake(flight.waiters)
        if crash is not None:
            _log.error("flight_crashed", key=flight.key, exc_info=crash)
        if self._after is not None:
            await self._after(flight.outcome)


async def _wake(waiters: set[asyncio.Future[None]]) -> None:
    """Wake all, a batch at a time, so that thousands of them do not stall the loop."""
    for number, waiter in enumerate(list(waiters), start=1):
        if not waiter.done():
            waiter.set_result(None)
        if number % _WAKE_BATCH == 0:
            await asyncio.sleep(0)

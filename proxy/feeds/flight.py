"""Collapsed forwarding: whoever asks the same question at the same time shares one flight.

The flight is a task that the application owns; all who ask, the first included, only wait for it. So nobody
who leaves takes the answer from the others, and nothing cancels a request that is under way.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from proxy.clock import Clock
from proxy.errors import UpstreamTimeout, UpstreamUnavailable
from proxy.telemetry import get_logger

T = TypeVar("T")

# As many as there may be connections: a front page's worth of readers for one feed.
MAX_WAITERS: Final = 10_000
# So many are called before others get a turn of the event loop.
_CALL_BATCH: Final = 256

_log = get_logger()


# To be called once there is an outcome, or no more time to wait for one.
Landed = Callable[[], None]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Flight(Generic[T]):
    """One question under way. `outcome` is set before anyone is called."""

    key: str
    started_at: float
    task: asyncio.Task[None] | None = None
    outcome: T | None = None
    waiters: dict[Landed, None] = field(default_factory=dict)  # first come first
    overdue: asyncio.TimerHandle | None = None


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
        if flight is not None and not self._is_too_old(flight):
            return flight, False
        flight = Flight(key, self._clock.steady())
        self._by_key[key] = flight
        self._flying.add(flight)
        loop = asyncio.get_running_loop()
        flight.overdue = loop.call_later(self._max_age_s, self._leave, flight)
        flight.task = asyncio.create_task(self._run(flight, fly), name=f"flight {key[:80]}")
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        return flight, True

    @property
    def full(self) -> bool:
        """Whether nobody else may wait."""
        return self._given_up or self._waiting >= MAX_WAITERS

    def joinable(self, key: str) -> Flight[T] | None:
        """The flight for `key` that a newcomer may share and wait for."""
        flight = self._by_key.get(key)
        if flight is None or self.full or self._is_too_old(flight):
            return None
        return flight

    def call_when_landed(self, flight: Flight[T], landed: Landed) -> None:
        """Have `landed` called once: when `flight` has an outcome, is too old, or is given up."""
        flight.waiters[landed] = None
        self._waiting += 1

    def call_off(self, flight: Flight[T], landed: Landed) -> None:
        """Do not call `landed` any more."""
        self._take_out(flight, landed)

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
        # A future of its own: one shared by all would be cancelled by the first who leaves.
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        landed = functools.partial(_resolve, waiter)
        self.call_when_landed(flight, landed)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass  # the outcome may have come in the very instant in which the time was up
        finally:
            self._take_out(flight, landed)
        if flight.outcome is None:
            raise UpstreamTimeout("the upstream did not answer in time")
        return flight.outcome

    def detach(self) -> None:
        """Let nobody join the flights there are: what they bring may be too old for newcomers."""
        self._by_key.clear()

    def give_up(self) -> None:
        """Call everyone who waits, with or without an outcome, and let nobody wait: there is no more time."""
        self._given_up = True
        for flight in list(self._flying):
            self._call_all(flight)

    async def drain(self, grace_s: float) -> None:
        """Let flights land for `grace_s` seconds, then end the rest. For shutdown, when nobody waits."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, flight: Flight[T], fly: Callable[[], Awaitable[T]]) -> None:
        crash: Exception | None = None
        try:
            flight.outcome = await fly()
        except Exception as error:  # noqa: BLE001  (the last resort: a bug must not leave waiters hanging)
            crash = error
            flight.outcome = self._crashed(error)
        finally:
            # Off the table before anyone is called: who comes now starts anew or finds the stored answer.
            self._take_off(flight)
            self._flying.discard(flight)
            if flight.overdue is not None:
                flight.overdue.cancel()
        await self._call_in_turns(flight)
        if crash is not None:
            _log.error("flight_crashed", key=flight.key, exc_info=crash)
        if self._after is not None:
            await self._after(flight.outcome)

    def _is_too_old(self, flight: Flight[T]) -> bool:
        return self._clock.steady() - flight.started_at > self._max_age_s

    def _leave(self, flight: Flight[T]) -> None:
        """To itself. Whoever joined it later would be called by nobody."""
        self._take_off(flight)
        self._call_all(flight)

    def _take_off(self, flight: Flight[T]) -> None:
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def _call_all(self, flight: Flight[T]) -> None:
        for landed in list(flight.waiters):
            self._call(flight, landed)

    async def _call_in_turns(self, flight: Flight[T]) -> None:
        """A batch at a time, so that thousands of them do not stall the loop."""
        for number, landed in enumerate(list(flight.waiters), start=1):
            self._call(flight, landed)
            if number % _CALL_BATCH == 0:
                await asyncio.sleep(0)

    def _call(self, flight: Flight[T], landed: Landed) -> None:
        """Unless it does not wait any longer, or was called for another reason."""
        if self._take_out(flight, landed):
            try:
                landed()
            except Exception:  # noqa: BLE001  (the last resort: a bug in one must not leave the others waiting)
                _log.error("waiter_crashed", key=flight.key, exc_info=True)

    def _take_out(self, flight: Flight[T], landed: Landed) -> bool:
        """Whether `landed` was still to be called."""
        if landed not in flight.waiters:
            return False
        del flight.waiters[landed]
        self._waiting -= 1
        return True


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

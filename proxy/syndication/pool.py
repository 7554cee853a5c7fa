"""A worker's hands for one kind of work: lease -> attempt -> settle; and the life that they share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from proxy.errors import StoreError, StoreUnavailable
from proxy.resilience.backoff import full_jitter
from proxy.syndication.queue import JobQueue, Stream
from proxy.syndication.queue_answers import Leased, Settled
from proxy.syndication.slots import Entry, Slots
from proxy.telemetry import get_logger

# While the store is away: pauses between attempts to reach it.
_PAUSE_BASE_S: Final = 0.1
_PAUSE_CAP_S: Final = 2.0
# So many leases of its own a worker looks through at each heartbeat.
_OWN: Final = 1000

T = TypeVar("T")

_log = get_logger()


class Life:
    """What the heartbeat knows and the hands need to. `name` is one that no other worker ever had."""

    def __init__(self, name: str, draw: Callable[[], float]) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self.greeting = asyncio.Event()  # it has to introduce itself (again)
        self.introduced = asyncio.Event()
        # Until when (steady) others take this worker for alive; leases of earlier lives are lost.
        self.alive_until = -math.inf
        self.number = 0
        self._draw = draw

    def lease_end(self) -> Callable[[], float]:
        """Says until when (steady) a lease of the present life lasts, as it is whenever that is asked."""
        number = self.number
        return lambda: self.alive_until if number == self.number else -math.inf

    async def pause(self, failures: int) -> None:
        """Wait after so many failures in a row."""
        draw = 0.5 + self._draw() / 2
        await asyncio.sleep(full_jitter(failures, base_s=_PAUSE_BASE_S, cap_s=_PAUSE_CAP_S, draw=draw))


class Work(Protocol[T]):
    """One kind of work."""

    @property
    def stream(self) -> Stream:
        """Where it comes from."""

    def host(self, leased: Leased) -> str:
        """The server that it goes to, of which it takes a slot; "" if it is not known."""

    async def is_off(self, leased: Leased) -> bool:
        """Whether it is to go back after all, now that it has waited for its slot. Raises nothing."""

    async def attempt(self, leased: Leased, ends_at: Callable[[], float]) -> T | None:
        """What became of it; None if nothing did, and it goes back as it was. Raises nothing."""

    async def settle(self, leased: Leased, outcome: T | None, following: str) -> Settled:
        """Tell the queue. `following`: the worker that wants the next lease with it. Raises StoreError."""


class Pool(Generic[T]):
    """Works on leases of one kind, as many at a time as `slots` let in."""

    def __init__(self, queue: JobQueue, work: Work[T], life: Life, slots: Slots) -> None:
        self._queue = queue
        self._work = work
        self._life = life
        self._slots = slots
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokens: set[str] = set()  # of the leases that are being worked on
        self._strays: set[str] = set()  # tokens of leases that nobody worked on when last looked

    @property
    def in_flight(self) -> int:
        """How many it is working on."""
        return len(self._tokens)

    async def pull(self) -> None:
        """Get work and start on it, until cancelled."""
        failures = 0
        while True:
            await self._life.introduced.wait()
            try:
                leases = await self._get(await self._room())
                if leases is None:
                    self._life.introduced.clear()
                    self._life.greeting.set()
                for leased in leases or ():
                    self._start(leased)
                failures = 0
            except StoreError as error:
                failures += 1
                _log.warning("worker_waits_for_store", worker=self._life.name, reason=str(error))
                await self._life.pause(failures)

    async def collect_strays(self) -> None:
        """Take up what is ours and nobody works on: leases whose answer was lost on the way.

        One that is seen for the first time may be on its way. Raises StoreError.
        """
        unseen = set()
        for leased in await self._queue.take(self._life.name, _OWN, stream=self._work.stream, own=True) or ():
            if leased.token in self._tokens:
                continue
            if leased.fresh or leased.token in self._strays:
                self._start(leased)
            else:
                unseen.add(leased.token)
        self._strays = unseen

    def stop(self) -> None:
        """Let nothing begin any more; what stands aside goes back."""
        self._slots.close()

    async def drain(self, grace_s: float) -> None:
        """Let what is in flight end, for as long as the grace lasts."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        await self.abandon()

    async def abandon(self) -> None:
        """End what is in flight; it goes back when the worker leaves or is found dead."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _room(self) -> int:
        """How many more may be leased, once it is one at least."""
        while (room := self._slots.room(len(self._tasks))) < 1:
            self._slots.changed.clear()
            await self._slots.changed.wait()
        return room

    async def _get(self, count: int) -> list[Leased] | None:
        """Up to `count` leases; waits a while for the first."""
        name, stream = self._life.name, self._work.stream
        at_once = await self._queue.take(name, count, stream=stream)
        return await self._queue.wait_and_take(name, count, stream) if at_once == [] else at_once

    def _start(self, leased: Leased) -> None:
        if leased.token in self._tokens:
            return
        self._tokens.add(leased.token)
        task = asyncio.create_task(self._do(leased), name=f"{self._work.stream} {leased.id}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.changed.set()

    async def _do(self, leased: Leased) -> None:
        """Work on `leased`, then on whatever comes with the answer to its end."""
        current: Leased | None = leased
        while current is not None:
            self._tokens.add(current.token)
            try:
                outcome = await self._attempt_in_turn(current)
                following = await self._settle(current, outcome)
            finally:
                self._tokens.discard(current.token)
            current = following if following is not None and following.token not in self._tokens else None

    async def _attempt_in_turn(self, leased: Leased) -> T | None:
        """What became of it once its server has a slot; None if nothing did, and it goes back as it was."""
        ends_at, host = self._life.lease_end(), self._work.host(leased)
        entry = await self._slots.enter(host)
        if entry is Entry.CLOSED:
            return None
        try:
            if entry is Entry.WAITED and await self._work.is_off(leased):
                return None
            return await self._work.attempt(leased, ends_at)
        finally:
            self._slots.leave(host)

    async def _settle(self, leased: Leased, outcome: T | None) -> Leased | None:
        """Tell the queue, until it has heard; what to work on next, if anything."""
        failures = 0
        while True:
            following = "" if self._life.stopping.is_set() else self._life.name
            try:
                settled = await self._work.settle(leased, outcome, following)
            except StoreError as error:
                failures += 1
                _log.warning("settling_failed", delivery=leased.id, reason=str(error))
                if not isinstance(error, StoreUnavailable) and failures > 1:
                    return None  # a damaged value; the reconciler looks after what can be saved
                await self._life.pause(failures)
            else:
                if not settled.ours:
                    _log.warning("late_write_refused", delivery=leased.id)
                return settled.following

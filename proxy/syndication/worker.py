"""The worker: lease -> attempt -> finish, retry, park or dead letter; and the heartbeat that keeps leases."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.errors import Faulty, LeaseLost, StoreError, StoreUnavailable, Superseded
from proxy.resilience.adaptive import AdaptivePolicy
from proxy.resilience.backoff import full_jitter
from proxy.syndication.attempt import (
    Credentials,
    Lease,
    Outcome,
    Permanent,
    Publish,
    Published,
    Transient,
    Wait,
)
from proxy.syndication.housekeeping import keep_house
from proxy.syndication.post import restore_post
from proxy.syndication.queue import JobQueue
from proxy.syndication.queue_answers import Leased, Settled
from proxy.syndication.slots import Entry, HostLoad, Slots
from proxy.syndication.workers_lease import WorkersLease
from proxy.telemetry import get_logger

__all__ = [
    "Credentials",
    "Lease",
    "Outcome",
    "Permanent",
    "Publish",
    "Published",
    "Transient",
    "Wait",
    "Worker",
    "WorkerPolicy",
]

# While the store is away: pauses between attempts to reach it.
_PAUSE_BASE_S: Final = 0.1
_PAUSE_CAP_S: Final = 2.0
# So many leases of its own a worker looks through at each heartbeat.
_OWN: Final = 1000

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPolicy:
    """How a worker works."""

    concurrency: int
    lease_s: float
    # How long what is in flight may take once the worker is to stop.
    grace_s: float = 7.0


class Worker:
    """One process's part in working off the queue.

    `accounts` gives the accounts it can serve, with the fingerprints of their credentials; asked at the start
    and whenever `reload` is called. `name` is one that no other worker ever had.
    """

    def __init__(
        self,
        queue: JobQueue,
        publish: Publish,
        accounts: Callable[[], Mapping[str, str]],
        clock: Clock,
        policy: WorkerPolicy,
        *,
        name: str,
        draw: Callable[[], float],
        slots: Slots | None = None,
        home: Callable[[str], str] = lambda _: "",
    ) -> None:
        """`slots` hear of the requests that `publish` makes; `home` tells the host of an account's PDS."""
        self._queue = queue
        self._publish = publish
        self._accounts = accounts
        self._clock = clock
        self._policy = policy
        self._name = name
        self._draw = draw
        self._stopping = asyncio.Event()
        self._greeting = asyncio.Event()  # it has to introduce itself (again)
        self._introduced = asyncio.Event()
        self._slots = slots or Slots(AdaptivePolicy(ceiling=policy.concurrency), clock)
        self._home = home
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokens: set[str] = set()  # of the leases that are being worked on
        # Until when (steady) others take this worker for alive; leases of earlier lives are lost.
        self._alive_until = -math.inf
        self._life = 0

    @property
    def in_flight(self) -> int:
        """How many deliveries it is working on."""
        return len(self._tokens)

    def loads(self) -> Mapping[str, HostLoad]:
        """How much is under way to each PDS host, and how much it bears at a time."""
        return self._slots.loads()

    async def run(self) -> None:
        """Work until `stop` is called; what is in flight then finishes or goes back. Waits for Redis."""
        try:
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._beat(), name="worker heartbeat")
                housekeeping = group.create_task(keep_house(self._queue), name="worker housekeeping")
                pulling = group.create_task(self._pull(), name="worker pull")
                await self._stopping.wait()
                pulling.cancel()
                await self._drain()
                housekeeping.cancel()
                beating.cancel()
        finally:
            await self._abandon()
        with contextlib.suppress(StoreError):
            given_back = await self._queue.leave(self._name)
            _log.info("worker_stopped", worker=self._name, given_back=len(given_back))

    def stop(self) -> None:
        """Take nothing new from now on; what stands aside goes back."""
        self._stopping.set()
        self._slots.close()

    def reload(self) -> None:
        """The accounts have changed."""
        self._greeting.set()

    # The heartbeat, which nothing that a delivery does holds up.

    async def _beat(self) -> None:
        strays: set[str] = set()
        await self._introduce()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._policy.lease_s / 3):
                    await self._greeting.wait()
            if self._greeting.is_set():
                await self._introduce()
            try:
                sent_at = self._clock.steady()
                if await self._queue.heartbeat(self._name):
                    self._alive_until = sent_at + self._policy.lease_s
                    strays = await self._collect_strays(strays)
                else:
                    self._greeting.set()
            except StoreError as error:
                _log.warning("heartbeat_failed", worker=self._name, reason=str(error))
                await self._pause(1)

    async def _introduce(self) -> None:
        """Say who we are, until it has been heard."""
        self._greeting.clear()
        failures, unbroken = 0, False
        while True:
            sent_at = self._clock.steady()
            try:
                # What was leased before may be another's, unless a heartbeat says otherwise.
                unbroken = self._life > 0 and await self._queue.heartbeat(self._name)
                await self._queue.introduce(self._name, self._accounts())
                break
            except StoreError as error:
                failures += 1
                _log.warning("worker_waits_for_store", worker=self._name, reason=str(error))
                await self._pause(failures)
        if not unbroken:
            self._life += 1
        self._alive_until = sent_at + self._policy.lease_s
        self._introduced.set()

    async def _collect_strays(self, before: set[str]) -> set[str]:
        """Take up what is ours and nobody works on: leases whose answer was lost on the way.

        One that is seen for the first time may be on its way; the ids of those are returned.
        """
        if self._stopping.is_set():
            return set()
        unseen = set()
        for leased in await self._queue.take(self._name, _OWN, own=True) or ():
            if leased.token in self._tokens:
                continue
            if leased.fresh or leased.token in before:
                self._start(leased)
            else:
                unseen.add(leased.token)
        return unseen

    # Getting work.

    async def _pull(self) -> None:
        failures = 0
        while True:
            await self._introduced.wait()
            try:
                leases = await self._get(await self._room())
                if leases is None:
                    self._introduced.clear()
                    self._greeting.set()
                for leased in leases or ():
                    self._start(leased)
                failures = 0
            except StoreError as error:
                failures += 1
                _log.warning("worker_waits_for_store", worker=self._name, reason=str(error))
                await self._pause(failures)

    async def _room(self) -> int:
        """How many more may be leased, once it is one at least."""
        while (room := self._slots.room(len(self._tasks))) < 1:
            self._slots.changed.clear()
            await self._slots.changed.wait()
        return room

    async def _get(self, count: int) -> list[Leased] | None:
        """Up to `count` leases; waits a while for the first."""
        at_once = await self._queue.take(self._name, count)
        return await self._queue.wait_and_take(self._name, count) if at_once == [] else at_once

    def _start(self, leased: Leased) -> None:
        if leased.token in self._tokens:
            return
        self._tokens.add(leased.token)
        task = asyncio.create_task(self._work(leased), name=f"delivery {leased.id}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.changed.set()

    # Working.

    async def _work(self, leased: Leased) -> None:
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

    async def _attempt_in_turn(self, leased: Leased) -> Outcome | None:
        """What became of it once its server has a slot; None if nothing did, and it goes back as it was."""
        life = self._life
        host = self._home(leased.id.rpartition(":")[2])
        entry = await self._slots.enter(host)
        if entry is Entry.CLOSED:
            return None
        try:
            if entry is Entry.WAITED and await self._is_closed_by_now(leased):
                return None
            return await self._attempt(leased, life)
        finally:
            self._slots.leave(host)

    async def _is_closed_by_now(self, leased: Leased) -> bool:
        """Whether the account was paused, or its breaker opened, while the delivery stood aside."""
        job, _, account = leased.id.rpartition(":")
        try:
            view = await self._queue.read(job)
        except StoreError:
            return True
        return view is None or account in view.gates

    async def _attempt(self, leased: Leased, life: int) -> Outcome | None:
        """What became of it, as a lease that began in that life."""
        if leased.delivery is None or leased.job is None:
            return Permanent(reason="what is stored of this post is damaged")
        lease = WorkersLease(
            self._queue,
            leased,
            leased.job,
            lambda: self._alive_until if life == self._life else -math.inf,
            self._clock,
        )
        try:
            return await self._publish(leased.delivery, restore_post(leased.job.payload), lease)
        except Superseded:
            _log.info("delivery_superseded", delivery=leased.id)
        except LeaseLost as error:
            _log.warning("lease_lost", delivery=leased.id, reason=str(error))
        except StoreError as error:
            _log.warning("attempt_ended_by_store", delivery=leased.id, reason=str(error))
        except Faulty:
            return Permanent(reason="what is stored of this post is damaged")
        except Exception as error:  # noqa: BLE001  (a bug must cost an attempt, not the worker)
            _log.exception("attempt_crashed", delivery=leased.id)
            return Transient(reason=f"internal error: {type(error).__name__}", counts_for_breaker=False)
        return None

    async def _settle(self, leased: Leased, outcome: Outcome | None) -> Leased | None:
        """Tell the queue, until it has heard; what to work on next, if anything."""
        failures = 0
        while True:
            following = "" if self._stopping.is_set() else self._name
            try:
                settled = await self._tell(leased, outcome, following)
            except StoreError as error:
                failures += 1
                _log.warning("settling_failed", delivery=leased.id, reason=str(error))
                if not isinstance(error, StoreUnavailable) and failures > 1:
                    return None  # a damaged value; the reconciler looks after what can be saved
                await self._pause(failures)
            else:
                if not settled.ours:
                    _log.warning("late_write_refused", delivery=leased.id)
                return settled.following

    async def _tell(self, leased: Leased, outcome: Outcome | None, following: str) -> Settled:
        queue = self._queue
        match outcome:
            case Published():
                return await queue.finish(
                    leased, outcome.uri, outcome.cid, outcome.degraded, following=following
                )
            case Transient():
                return await queue.retry(
                    leased,
                    outcome.reason,
                    counts_for_breaker=outcome.counts_for_breaker,
                    not_before_s=outcome.retry_after_s or 0.0,
                    following=following,
                )
            case Permanent():
                return await queue.fail(leased, outcome.reason, following=following)
            case Wait():
                return await queue.release(
                    leased, wait_s=outcome.for_s, reason=outcome.reason, following=following
                )
            case Credentials():
                refused = self._accounts().get(leased.id.rpartition(":")[2], "unknown")
                return await queue.release(
                    leased, reason=outcome.reason, refused_fingerprint=refused, following=following
                )
            case None:
                return await queue.release(leased, following=following)

    # Ending.

    async def _drain(self) -> None:
        """Let what is in flight end, for as long as the grace lasts."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._policy.grace_s)
        await self._abandon()

    async def _abandon(self) -> None:
        """End what is in flight; it goes back when the worker leaves or is found dead."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pause(self, failures: int) -> None:
        await asyncio.sleep(
            full_jitter(failures, base_s=_PAUSE_BASE_S, cap_s=_PAUSE_CAP_S, draw=0.5 + self._draw() / 2)
        )

"""A worker: the heartbeat that keeps its leases, and a pool for each kind of work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.clock import Clock
from proxy.errors import StoreError
from proxy.resilience.adaptive import AdaptivePolicy
from proxy.syndication.attempt import Publish
from proxy.syndication.delivering import Deliveries
from proxy.syndication.housekeeping import keep_house
from proxy.syndication.pool import Life, Pool, Work
from proxy.syndication.queue import JobQueue
from proxy.syndication.slots import HostLoad, Slots
from proxy.telemetry import get_logger

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPolicy:
    """How a worker works. `concurrency` is that of posts, and again that of errands."""

    concurrency: int
    lease_s: float
    # How long what is in flight may take once the worker is to stop.
    grace_s: float = 7.0


class Worker:
    """One process's part in working off the queue.

    `accounts` gives the accounts it can serve, with the fingerprints of their credentials; asked at the start
    and whenever `reload` is called. `errands` are left to other workers when None. `name` is one that no
    other worker ever had.
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
        errands: Work[Any] | None = None,
    ) -> None:
        """`slots` hear of the requests that `publish` makes; `home` tells the host of an account's PDS."""
        self._queue = queue
        self._accounts = accounts
        self._clock = clock
        self._policy = policy
        self._life = Life(name, draw)
        ceiling = AdaptivePolicy(ceiling=policy.concurrency)
        self._slots = slots or Slots(ceiling, clock)
        deliveries = Deliveries(queue, publish, accounts, clock, home=home)
        self._pools: list[Pool[Any]] = [Pool(queue, deliveries, self._life, self._slots)]
        if errands is not None:
            self._pools.append(Pool(queue, errands, self._life, Slots(ceiling, clock)))

    @property
    def name(self) -> str:
        """What the queue knows it by."""
        return self._life.name

    @property
    def in_flight(self) -> int:
        """How much it is working on."""
        return sum(pool.in_flight for pool in self._pools)

    def loads(self) -> Mapping[str, HostLoad]:
        """How much is under way to each PDS host, and how much it bears at a time."""
        return self._slots.loads()

    async def run(self) -> None:
        """Work until `stop` is called; what is in flight then finishes or goes back. Waits for Redis."""
        try:
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._beat(), name="worker heartbeat")
                housekeeping = group.create_task(keep_house(self._queue), name="worker housekeeping")
                pulling = [group.create_task(pool.pull(), name="worker pull") for pool in self._pools]
                await self._life.stopping.wait()
                for task in pulling:
                    task.cancel()
                await asyncio.gather(*(pool.drain(self._policy.grace_s) for pool in self._pools))
                housekeeping.cancel()
                beating.cancel()
        finally:
            for pool in self._pools:
                await pool.abandon()
        with contextlib.suppress(StoreError):
            given_back = await self._queue.leave(self._life.name)
            _log.info("worker_stopped", worker=self._life.name, given_back=len(given_back))

    def stop(self) -> None:
        """Take nothing new from now on; what stands aside goes back."""
        self._life.stopping.set()
        for pool in self._pools:
            pool.stop()

    def reload(self) -> None:
        """The accounts have changed."""
        self._life.greeting.set()

    # The heartbeat, which nothing that is worked on holds up.

    async def _beat(self) -> None:
        life = self._life
        await self._introduce()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._policy.lease_s / 3):
                    await life.greeting.wait()
            if life.greeting.is_set():
                await self._introduce()
            try:
                sent_at = self._clock.steady()
                if await self._queue.heartbeat(life.name):
                    life.alive_until = sent_at + self._policy.lease_s
                    await self._collect_strays()
                else:
                    life.greeting.set()
            except StoreError as error:
                _log.warning("heartbeat_failed", worker=life.name, reason=str(error))
                await life.pause(1)

    async def _introduce(self) -> None:
        """Say who we are, until it has been heard."""
        life = self._life
        life.greeting.clear()
        failures, unbroken = 0, False
        while True:
            sent_at = self._clock.steady()
            try:
                # What was leased before may be another's, unless a heartbeat says otherwise.
                unbroken = life.number > 0 and await self._queue.heartbeat(life.name)
                await self._queue.introduce(life.name, self._accounts())
                break
            except StoreError as error:
                failures += 1
                _log.warning("worker_waits_for_store", worker=life.name, reason=str(error))
                await life.pause(failures)
        if not unbroken:
            life.number += 1
        life.alive_until = sent_at + self._policy.lease_s
        life.introduced.set()

    async def _collect_strays(self) -> None:
        for pool in self._pools:
            if not self._life.stopping.is_set():
                await pool.collect_strays()

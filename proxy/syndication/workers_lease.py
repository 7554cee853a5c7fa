"""What a worker holds while it works on a delivery: see attempt.Lease."""

from __future__ import annotations

from collections.abc import Callable

from proxy.clock import Clock
from proxy.errors import LeaseLost
from proxy.syndication.job import Job
from proxy.syndication.queue import JobQueue
from proxy.syndication.queue_answers import Leased


class WorkersLease:
    """A Lease that ends when the worker's heartbeat has failed for too long. See attempt.Lease."""

    def __init__(
        self, queue: JobQueue, leased: Leased, job: Job, ends_at: Callable[[], float], clock: Clock
    ) -> None:
        self._queue = queue
        self._leased = leased
        self._job = job
        self._ends_at = ends_at
        self._clock = clock

    @property
    def job(self) -> Job:
        """The job of the delivery, as it was when the lease began."""
        return self._job

    @property
    def ends_at(self) -> float:
        """The steady instant at which the lease ends unless the next heartbeat succeeds."""
        return self._ends_at()

    def expired(self) -> bool:
        """See Lease."""
        return self._clock.steady() >= self._ends_at()

    async def intend(
        self, intent: bytes, cid: str, rkey: str, *, did: str = "", generation: int | None = None
    ) -> None:
        """See Lease."""
        if self.expired():
            raise LeaseLost(f"the lease of {self._leased.id} has ended")
        await self._queue.intend(self._leased, intent, cid, rkey, did=did, generation=generation)

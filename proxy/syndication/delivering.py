"""Deliveries, as a worker works on them: the lease that the publisher sees, and what each outcome means."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.clock import Clock
from proxy.errors import Faulty, LeaseLost, StoreError, Superseded
from proxy.syndication.attempt import Credentials, Outcome, Permanent, Publish, Published, Transient, Wait
from proxy.syndication.job import Job
from proxy.syndication.post import restore_post
from proxy.syndication.queue import JobQueue, Stream
from proxy.syndication.queue_answers import Leased, Settled
from proxy.telemetry import get_logger

_log = get_logger()


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


class Deliveries:
    """Brings posts to accounts. `accounts` gives those it can serve, with their credentials' fingerprints."""

    stream = Stream.DELIVERIES

    def __init__(
        self,
        queue: JobQueue,
        publish: Publish,
        accounts: Callable[[], Mapping[str, str]],
        clock: Clock,
        *,
        home: Callable[[str], str],
    ) -> None:
        """`home` tells the host of an account's PDS, "" if it is not known."""
        self._home = home
        self._queue = queue
        self._publish = publish
        self._accounts = accounts
        self._clock = clock

    def host(self, leased: Leased) -> str:
        """See pool.Work."""
        return self._home(leased.id.rpartition(":")[2])

    async def is_off(self, leased: Leased) -> bool:
        """See pool.Work: whether its account was paused, or its breaker opened, meanwhile."""
        job, _, account = leased.id.rpartition(":")
        try:
            view = await self._queue.read(job)
        except StoreError:
            return True
        return view is None or account in view.gates

    async def attempt(self, leased: Leased, ends_at: Callable[[], float]) -> Outcome | None:
        """See pool.Work."""
        if leased.delivery is None or leased.job is None:
            return Permanent(reason="what is stored of this post is damaged")
        lease = WorkersLease(self._queue, leased, leased.job, ends_at, self._clock)
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

    async def settle(self, leased: Leased, outcome: Outcome | None, following: str) -> Settled:
        """See pool.Work."""
        settled = await self._settle(leased, outcome, following)
        if settled.ours:
            _tell(leased, outcome)
        return settled

    async def _settle(self, leased: Leased, outcome: Outcome | None, following: str) -> Settled:
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


def _tell(leased: Leased, outcome: Outcome | None) -> None:
    """Have the log say what became of an attempt."""
    job, _, account = leased.id.rpartition(":")
    match outcome:
        case Published():
            _log.info("post_published", job=job, account=account, uri=outcome.uri)
        case Transient():
            attempt = leased.delivery.failures + 1 if leased.delivery is not None else 1
            _log.warning("attempt_failed", job=job, account=account, attempt=attempt, reason=outcome.reason)
        case Permanent():
            _log.warning("post_failed", job=job, account=account, reason=outcome.reason)
        case Credentials():
            _log.warning("login_refused", job=job, account=account, reason=outcome.reason)
        case Wait() | None:  # whoever found that it has to wait has said so
            pass

"""Errands, as a worker's pool works on them: what a post needs found out, and whom its end is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.errors import Faulty, NewerFormat, StoreError
from proxy.syndication.accounts import Accounts
from proxy.syndication.callbacks import Callbacks, Told
from proxy.syndication.chain import (
    ENRICH_ATTEMPTS,
    ENRICH_PAUSE_S,
    ENRICH_S,
    CallbackOutcome,
    Errand,
    ErrandKind,
)
from proxy.syndication.enriching import Enricher
from proxy.syndication.job import Job
from proxy.syndication.post import restore_post
from proxy.syndication.queue import JobQueue, Stream
from proxy.syndication.queue_answers import Leased, Settled
from proxy.telemetry import get_logger

_log = get_logger()

DAMAGED = "what is stored of this post is damaged"


@dataclass(frozen=True, slots=True)
class Enriched:
    """What was found out, as the job keeps it."""

    enrichment: str


@dataclass(frozen=True, slots=True)
class NotEnriched:
    """Nothing was found out; `again`: another attempt may do better."""

    reason: str
    again: bool = False


ErrandOutcome = Enriched | NotEnriched | Told


class Errands:
    """Runs errands. `accounts` gives sites and their secrets as they are at that moment.

    `told` is called with the outcome of each attempt to tell of a job's end, once the queue knows it.
    """

    stream = Stream.ERRANDS

    def __init__(
        self,
        queue: JobQueue,
        enricher: Enricher,
        callbacks: Callbacks,
        accounts: Callable[[], Accounts],
        clock: Clock,
        told: Callable[[CallbackOutcome], None],
    ) -> None:
        self._queue = queue
        self._enricher = enricher
        self._callbacks = callbacks
        self._accounts = accounts
        self._clock = clock
        self._on_told = told

    def host(self, _leased: Leased) -> str:
        """See pool.Work."""
        return ""

    async def is_off(self, _leased: Leased) -> bool:
        """See pool.Work."""
        return False

    async def attempt(self, leased: Leased, ends_at: Callable[[], float]) -> ErrandOutcome | None:
        """See pool.Work."""
        errand = leased.errand
        if errand is None:
            return NotEnriched(DAMAGED) if "::enrich:" in leased.id else _failed(DAMAGED)
        try:
            if errand.kind is ErrandKind.ENRICH:
                return await self._enriched(errand, leased.job)
            return await self._told(errand, ends_at)
        except StoreError as error:
            _log.warning("attempt_ended_by_store", delivery=leased.id, reason=str(error))
            return None
        except Exception as error:  # noqa: BLE001  (a bug must cost an attempt, not the worker)
            _log.exception("attempt_crashed", delivery=leased.id)
            reason = f"internal error: {type(error).__name__}"
            if errand.kind is ErrandKind.ENRICH:
                return NotEnriched(reason, again=errand.failures + 1 < ENRICH_ATTEMPTS)
            return self._callbacks.again(errand, reason)

    async def settle(self, leased: Leased, outcome: ErrandOutcome | None, following: str) -> Settled:
        """See pool.Work."""
        queue = self._queue
        match outcome:
            case Enriched():
                return await queue.enriched(leased, outcome.enrichment, following=following)
            case NotEnriched():
                pause_s = ENRICH_PAUSE_S if outcome.again else None
                return await queue.not_enriched(
                    leased, outcome.reason, again_in_s=pause_s, following=following
                )
            case Told():
                settled = await queue.notified(
                    leased,
                    outcome.outcome,
                    outcome.reason,
                    again_in_s=outcome.again_in_s,
                    following=following,
                )
                self._on_told(outcome.outcome)
                return settled
            case None:
                return await queue.release(leased, following=following)

    async def _enriched(self, errand: Errand, job: Job | None) -> Enriched | NotEnriched:
        site = self._accounts().sites.get(errand.site)
        if job is None:
            return NotEnriched(DAMAGED)
        if site is None:
            return NotEnriched("this process does not know the site")
        try:
            post = restore_post(job.payload)
        except Faulty:
            return NotEnriched(DAMAGED)
        found = await self._enricher.enrich(post, site, self._clock.steady() + ENRICH_S)
        return Enriched(found.to_json())

    async def _told(self, errand: Errand, ends_at: Callable[[], float]) -> Told:
        accounts = self._accounts()
        site, secrets = accounts.sites.get(errand.site), accounts.callback_secrets(errand.site)
        if site is None or not secrets:
            return self._callbacks.again(errand, "this process has no secret of the site to sign with")
        view = None
        with contextlib.suppress(NewerFormat):
            view = await self._queue.read(errand.job)
        if view is None:
            return _failed("the job is not known any more")
        return await self._callbacks.tell(errand, view, site, secrets, ends_at())


def _failed(reason: str) -> Told:
    return Told(outcome=CallbackOutcome.FAILED, reason=reason)

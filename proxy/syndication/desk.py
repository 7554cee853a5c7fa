"""What intake and queue say to each other: a submission, what became of it, a job as it stands."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.syndication.job import Delivery, Job, Status
from proxy.syndication.overview import DeadFilter, ErrorGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What the enqueue script needs to know of one post; what depends on its identity is for it to decide.

    `accounts` maps each wanted account to its DID, "" while unknown. `key` is a SHA-256 in hexadecimal;
    `explicit_key` tells an Idempotency-Key of the CMS from (id, revision, payload): an implicit one replays
    only while this payload is the last that came for the identity, or else draft, publish, draft, publish
    without revisions would end as a draft. `skip` is why an unknown post would be skipped, "" if not.
    """

    job: str  # the id if a job is made of it; random
    site: str
    post: str  # the CMS's id
    revision: int | None
    payload: str  # canonical JSON
    payload_hash: str
    url_hash: str
    published_at_ms: int
    accounts: Mapping[str, str]
    group: str
    priority: str
    key: str
    explicit_key: bool
    wanted: bool  # False: a waiting job is canceled, a published one falls under `unpublish`
    skip: str
    unpublish: str  # keep | delete
    posts_per_hour: int
    max_waiting: int
    enrich: bool  # there is something to be found out before it is published
    callback_url: str  # "": nobody wants to be told of the job's end


class Verdict(enum.StrEnum):
    """What became of a submission."""

    QUEUED = "queued"  # a new job
    UPDATED = "updated"  # a waiting job has its payload now, or was canceled by it
    RECORDED = "recorded"  # published already; the edit is noted, or the record will be deleted
    OUTDATED = "outdated"  # a higher revision is there; nothing changed
    SKIPPED = "skipped"  # unknown, and not to be syndicated
    ID_REUSED = "id_reused"
    KEY_REUSED = "key_reused"
    FULL = "full"  # max_waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job with its deliveries, in the order of its accounts, as they were at one instant.

    `gates` says, for each account that is closed, why and until when (ms since 1970, -1 for ever).
    """

    job: Job
    deliveries: tuple[Delivery, ...]
    gates: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """The script's answer, stored with the key: the same again for each replay.

    `job` is "" where there is none. `view` is the job as this submission left it, also for replays; None: the
    caller reads it as it is now. Of a post that is remembered without its job, the last three tell what is
    known: `state` is the status its job ended with ("unpublished": its record was deleted), "" if it is not.
    """

    verdict: Verdict
    job: str = ""
    replayed: bool = False
    view: JobView | None = None
    first_published_at_ms: int = 0
    generation: int = 0
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Part of a list of jobs, newest first; `cursor` is "" at its end."""

    jobs: tuple[JobView, ...]
    cursor: str


class Desk(Protocol):
    """The queue as the intake sees it. Everything raises StoreUnavailable and StoreRefused."""

    async def enqueue(self, submission: Submission) -> Enqueued:
        """Take `submission` in, or say what it is instead: one script, the same answer for the same key."""

    async def read(self, job: str, *, site: str | None = None) -> JobView | None:
        """The job with its deliveries; None if it is not known, or not of `site` if that is given.

        Raises NewerFormat when a later version has it; so do `cancel` and `requeue`.
        """

    async def jobs(
        self, site: str, *, status: Status | None, group: str | None, cursor: str | None, limit: int
    ) -> JobPage:
        """Jobs of `site`, newest first; a page may be short, even empty, before the list's end.

        A cursor that none of its pages gave is answered with an empty page, not with an error.
        """

    async def errors(self, wanted: DeadFilter) -> tuple[ErrorGroup, ...]:
        """The dead letters that fit, counted by account and reason; the most frequent first."""

    async def cancel(self, job: str) -> JobView | None:
        """Cancel what has not been sent; the job as it is then, None if it is not known."""

    async def requeue(self, job: str, accounts: Sequence[str] = ()) -> JobView | None:
        """Try again what has failed (of `accounts`, or all of it), as from the start."""

    async def wait_for_news(self, job: str, timeout_s: float) -> None:
        """Return when something happened to `job`, or after `timeout_s`; the caller then reads again.

        What happened just before the call may go unnoticed, so callers keep `timeout_s` to a few seconds.
        """

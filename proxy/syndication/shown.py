"""What a CMS is shown: jobs, skipped posts, pages and results of a batch, as JSON documents. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from proxy.syndication.chain import CallbackStatus, notification_id
from proxy.syndication.desk import Enqueued, JobView
from proxy.syndication.job import LIVE, Action, Delivery, DeliveryState, Job, Status, job_status
from proxy.syndication.post import Skip
from proxy.syndication.problems import Problem
from proxy.syndication.rkey import record_key, record_uri
from proxy.syntax import instant_text

_DURABILITY = "What being stored means: on disk at once, within a second, or not at all"


class _Shown(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AccountShown(_Shown):
    """A job's progress on one account."""

    account: str
    did: str | None = Field(description="null only until the account's DID was first resolved")
    status: Status
    action: Action = Field(
        description="What `status` is about: to post, or to delete the record, which is gone once `completed`"
    )
    uri: str | None = Field(description="Where the record is, was or will be; known before it exists")
    cid: str | None = Field(
        description="null while there is no record: until it exists, and once it is deleted"
    )
    attempts: int = Field(ge=0)
    next_attempt_at: str | None = Field(json_schema_extra={"format": "date-time"})
    waiting_for: str | None = Field(
        description="retry, schedule, quota; enrich: its page and pictures are looked at; or what the whole "
        "account waits for: breaker, credentials, paused, rate_limited (a limit of its server, a "
        "Retry-After, the pause between logins)"
    )
    error: str | None = Field(description="Why the last attempt failed")
    degraded: list[str] = Field(description="What the post had to go without")


class CallbackShown(_Shown):
    """How far the callback is. It is sent each time that the job ends."""

    status: CallbackStatus = Field(
        description="waiting for the job's end; disabled: the address answered 410, see `retry`"
    )
    id: str | None = Field(description="`webhook-id` of the last end, the same in each attempt to tell of it")
    attempts: int = Field(ge=0)
    next_attempt_at: str | None = Field(json_schema_extra={"format": "date-time"})
    delivered_at: str | None = Field(json_schema_extra={"format": "date-time"})
    error: str | None = Field(description="Why the last attempt failed; says nothing of the job")


class Links(_Shown):
    """Where the job can be asked for."""

    self: str
    retry: str


class JobShown(_Shown):
    """A post on its way to its accounts."""

    id: str
    post: str = Field(description="The CMS's id")
    revision: int | None
    group: str | None
    status: Status
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    durability: str = Field(
        description=_DURABILITY, json_schema_extra={"enum": ["fsync", "everysec", "memory"]}
    )
    warnings: list[str]
    accounts: list[AccountShown]
    callback: CallbackShown | None = Field(description="null without a `callback_url`")
    links: Links


class SkippedShown(_Shown):
    """A post that was not known and is not syndicated."""

    status: Status = Field(json_schema_extra={"enum": ["skipped"]})
    reason: Skip
    detail: str
    warnings: list[str]


class RememberedShown(_Shown):
    """A post of which there is no job (any more): published without one, or a while ago."""

    id: None = None
    status: Status = Field(json_schema_extra={"enum": ["completed", "partial", "failed", "canceled"]})
    warnings: list[str]
    accounts: list[AccountShown]


class ErrorShown(_Shown):
    """How many posts have failed for good on an account for one reason."""

    account: str
    reason: str
    count: int = Field(ge=1)
    last_at: str = Field(json_schema_extra={"format": "date-time"})


class PageShown(_Shown):
    """Jobs of the site, newest first."""

    jobs: list[JobShown]
    errors: list[ErrorShown] | None = Field(
        description="What has failed for good (of the group, if one is asked for), the most frequent first; "
        "null on all pages but the first"
    )
    cursor: str | None = Field(description="For the next page; null at the end")


class ResultShown(_Shown):
    """What became of one post of a batch: `status` as if it had been sent alone, and that answer's body."""

    status: int
    body: JobShown | SkippedShown | RememberedShown | Problem


class BatchShown(_Shown):
    """One result for each post, in their order."""

    results: list[ResultShown]


_SKIP_DETAIL: Mapping[Skip, str] = {
    Skip.NOT_PUBLISHED: "its status is not publish",
    Skip.SWITCHED_OFF: "its syndication is switched off",
    Skip.ALREADY_PUBLISHED: "it was public before it was first sent here",
    Skip.TOO_OLD: "it was first published too long ago",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shower:
    """Turns what is stored into what is shown. `base` is put before paths ("" or an origin)."""

    base: str = ""

    def job(
        self, view: JobView, *, dids: Mapping[str, str], durability: str, warnings: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The job in `view`; `dids` are those known of accounts, for deliveries that have none yet."""
        job = view.job
        deliveries = {delivery.account: delivery for delivery in view.deliveries}
        accounts = [_account(view, name, deliveries.get(name), dids.get(name, "")) for name in job.accounts]
        path = f"{self.base}/syndicate/{job.id}"
        return JobShown(
            id=job.id,
            post=job.post,
            revision=job.revision,
            group=job.group or None,
            status=job_status(account.status for account in accounts),
            created_at=_instant(job.created_at_ms),
            durability=durability,
            warnings=list(warnings),
            accounts=accounts,
            callback=callback_shown(job),
            links=Links(self=path, retry=f"{path}/retry"),
        ).model_dump(mode="json")

    def skipped(self, reason: Skip, warnings: tuple[str, ...]) -> dict[str, Any]:
        """A post that is not syndicated."""
        return SkippedShown(
            status=Status.SKIPPED, reason=reason, detail=_SKIP_DETAIL[reason], warnings=list(warnings)
        ).model_dump(mode="json")

    def remembered(
        self,
        status: Status,
        records: Mapping[str, tuple[str, str, str]],
        warnings: tuple[str, ...],
        *,
        action: Action = Action.POST,
    ) -> dict[str, Any]:
        """A post without a job: for each account DID, URI and CID of its record, "" where unknown.

        `action`: what was done to it last.
        """
        accounts = [
            AccountShown(
                account=name,
                did=did or None,
                status=status,
                action=action,
                uri=uri or None,
                cid=cid or None,
                attempts=0,
                next_attempt_at=None,
                waiting_for=None,
                error=None,
                degraded=[],
            )
            for name, (did, uri, cid) in records.items()
        ]
        return RememberedShown(status=status, warnings=list(warnings), accounts=accounts).model_dump(
            mode="json"
        )


def remembered_records(
    enqueued: Enqueued, *, site: str, post: str, dids: Mapping[str, str]
) -> dict[str, tuple[str, str, str]]:
    """DID, URI and CID of each account's record of a post whose job is no longer kept."""
    records = {}
    for account, did in dids.items():
        uri = _predicted(did, site, post, enqueued.first_published_at_ms, enqueued.generation)
        records[account] = (did, uri, "")
    return records


def is_over(view: JobView) -> bool:
    """Whether nothing more will happen to the job by itself."""
    return job_status(delivery.shown for delivery in view.deliveries) not in (Status.PENDING, Status.RETRYING)


def is_stuck(view: JobView, delivery: Delivery) -> bool:
    """Whether a person must act before anything more happens to `delivery`, which is one of `view`'s."""
    reason, _ = view.gates.get(delivery.account, ("", 0))
    return delivery.shown is Status.FAILED or (delivery.state in LIVE and reason == "credentials")


def is_untold(view: JobView) -> bool:
    """Whether a person must act before the job's callback is tried again."""
    callback = view.job.callback
    return callback is not None and callback.status in (CallbackStatus.FAILED, CallbackStatus.DISABLED)


def address_of(job: Job, delivery: Delivery, did: str) -> str:
    """Where the record of `delivery` is, was or will be on the account `did`; "" if that is not known."""
    generation = max(delivery.generation, job.generation)
    return delivery.uri or _predicted(did, job.site, job.post, job.first_published_at_ms, generation)


def _account(view: JobView, name: str, delivery: Delivery | None, known_did: str) -> AccountShown:
    job = view.job
    if delivery is None:  # written by another version: all that can be said is that it is there
        delivery = Delivery(job=job.id, account=name, site=job.site, state=DeliveryState.READY)
    did = delivery.did or known_did
    uri = address_of(job, delivery, did)
    # What is going to be deleted is there.
    is_there = (delivery.state is DeliveryState.DONE) != (delivery.action is Action.DELETE)
    waiting_for, next_at_ms = _waiting(view, delivery)
    return AccountShown(
        account=name,
        did=did or None,
        status=delivery.shown,
        action=delivery.action,
        uri=uri or None,
        cid=delivery.cid if is_there and delivery.cid else None,
        attempts=delivery.attempts,
        next_attempt_at=_instant(next_at_ms) if next_at_ms > 0 else None,
        waiting_for=waiting_for or None,
        error=delivery.error or None,
        degraded=list(delivery.degraded),
    )


def _waiting(view: JobView, delivery: Delivery) -> tuple[str, int]:
    """What a delivery waits for, and until when in ms since 1970 (0: not known)."""
    if delivery.state is DeliveryState.DELAYED:
        return delivery.waiting_for, delivery.due_at_ms
    if delivery.state is not DeliveryState.READY:
        return "", 0
    if delivery.account in view.gates:
        return view.gates[delivery.account]
    return ("enrich", 0) if _waits_for_enrichment(view.job, delivery) else ("", 0)


def _waits_for_enrichment(job: Job, delivery: Delivery) -> bool:
    return job.enrich == "running" and delivery.action is Action.POST and not delivery.cid


def callback_shown(job: Job) -> CallbackShown | None:
    """How far the callback of `job` is; None if nobody wants to be told of its end."""
    callback = job.callback
    if callback is None:
        return None
    delivered = callback.status is CallbackStatus.DELIVERED
    at = _instant(callback.at_ms) if callback.at_ms else None
    return CallbackShown(
        status=callback.status,
        id=notification_id(job.id, callback.number) if callback.number else None,
        attempts=callback.attempts,
        next_attempt_at=None if delivered else at,
        delivered_at=at if delivered else None,
        error=callback.error or None,
    )


def _predicted(did: str, site: str, post: str, published_at_ms: int, generation: int) -> str:
    if not did or not published_at_ms:
        return ""
    rkey = record_key(
        did=did, site=site, post_id=post, published_at_ms=published_at_ms, generation=generation
    )
    return record_uri(did, rkey)


def _instant(at_ms: int) -> str:
    return instant_text(datetime.fromtimestamp(at_ms / 1000, UTC))

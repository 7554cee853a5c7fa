"""From a CMS's document to a job: who may post what where, and what the CMS is told."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from proxy.clock import Clock
from proxy.errors import Faulty, NewerFormat, Rejected, StoreRefused, StoreUnavailable
from proxy.syndication.accounts import AccountBook
from proxy.syndication.attempt import Published
from proxy.syndication.desk import Desk, Enqueued, JobView, Submission, Verdict
from proxy.syndication.documents import Documents
from proxy.syndication.job import Action, Job, Status
from proxy.syndication.overview import DeadFilter
from proxy.syndication.post import MAX_POST_BYTES, Post, Skip, host_allowed, parse_post, skip_reason
from proxy.syndication.problems import problem_of
from proxy.syndication.refusals import (
    id_reused,
    key_reused,
    store_away,
    store_errors,
    store_full,
    too_large,
    too_many_waiting,
)
from proxy.syndication.shown import is_over, is_stuck, is_untold, remembered_records
from proxy.syntax import at_uri_authority
from proxy.tenants import Account, Site

MAX_BATCH: Final = 100
_ENDED: Final = (Status.COMPLETED, Status.PARTIAL, Status.FAILED, Status.CANCELED)

_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")


class PublishNow(Protocol):
    """One synchronous attempt while the queue is away, with what this process still knows."""

    async def __call__(self, site: Site, post: Post, accounts: Sequence[str]) -> Mapping[str, Published]:
        """Publish `post` to `accounts`, each at most once; those that have it now.

        Never logs in, keeps to the last known pauses and breakers, and takes a few seconds at most. Raises
        nothing for an account that failed: it is left out.
        """


# A person wants an account tried again whose login was refused. Raises StoreError.
Forgive = Callable[[Account], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a CMS is told: a JSON document with a status; `location` is the path of a job, or ""."""

    status: int
    body: dict[str, Any]
    location: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakePolicy:
    """How posts are taken in."""

    max_post_age_s: float


class Intake:
    """Takes posts in, and tells of jobs. Raises Rejected for whatever is answered with a problem."""

    def __init__(
        self,
        desk: Desk,
        book: AccountBook,
        clock: Clock,
        policy: IntakePolicy,
        *,
        documents: Documents,
        forgive: Forgive,
        publish_now: PublishNow | None = None,
    ) -> None:
        self._desk = desk
        self._book = book
        self._clock = clock
        self._policy = policy
        self._documents = documents
        self._forgive = forgive
        self._publish_now = publish_now

    async def submit(self, site: Site, document: Any, idempotency_key: str | None) -> Answer:
        """Take one post in."""
        key = _checked_key(idempotency_key)
        post, warnings = self._checked(site, document)
        try:
            return await self._enqueue(site, post, warnings, key)
        except StoreUnavailable:
            return await self._without_store(site, post, warnings)
        except StoreRefused:
            raise store_full() from None

    async def submit_batch(self, site: Site, document: Any, idempotency_key: str | None) -> Answer:
        """Take up to 100 posts in, one after the other; each has a result as if it had been sent alone.

        While the queue is away none is tried synchronously, as that would take too long.
        """
        key = _checked_key(idempotency_key)
        if not isinstance(document, list) or not 1 <= len(document) <= MAX_BATCH:
            message = f"must be an array of 1 to {MAX_BATCH} posts"
            raise Faulty("invalid_batch", "the body is no batch of posts", (("$", message),))
        results: list[dict[str, Any]] = []
        away: Rejected | None = None
        for index, item in enumerate(document):
            try:
                if away is not None:
                    raise away
                # A key names the batch: each place in it has one of its own, which no client can send.
                answer = await self._submit_one(site, item, key and f"{key}\n{index}")
                results.append({"status": answer.status, "body": answer.body})
            except Rejected as error:
                away = error if error.status == 503 else away
                results.append({"status": error.status, "body": problem_of(error)})
        if away is not None and all(result["status"] == 503 for result in results):
            raise away
        return Answer(status=200, body={"results": results})

    async def _submit_one(self, site: Site, item: Any, key: str | None) -> Answer:
        if len(json.dumps(item, ensure_ascii=False).encode()) > MAX_POST_BYTES:
            raise too_large(MAX_POST_BYTES)
        post, warnings = self._checked(site, item)
        try:
            return await self._enqueue(site, post, warnings, key)
        except StoreUnavailable:
            raise store_away() from None
        except StoreRefused:
            raise store_full() from None

    async def job(self, site: Site, job: str) -> tuple[Answer, bool]:
        """The job as it is now, and whether it is over. Raises Rejected (404) unless it is the site's."""
        view = await self._view(site, job)
        return await self._answer(200, view), is_over(view)

    async def jobs(
        self, site: Site, *, status: Status | None, group: str | None, cursor: str | None, limit: int
    ) -> Answer:
        """A page of the site's jobs."""
        async with store_errors():
            page = await self._desk.jobs(site.name, status=status, group=group, cursor=cursor, limit=limit)
            errors = None
            if cursor is None:
                errors = await self._desk.errors(DeadFilter(site=site.name, group=group or ""))
        return Answer(status=200, body=await self._documents.page(page, errors))

    async def retry(self, site: Site, job: str) -> Answer:
        """Try again what has failed or waits for credentials, the callback too.

        Raises Rejected (409) when nothing does.
        """
        view = await self._view(site, job)
        stuck = [delivery.account for delivery in view.deliveries if is_stuck(view, delivery)]
        if not stuck and not is_untold(view):
            raise Rejected(
                409,
                "nothing_to_retry",
                "no account of this job has failed or waits for credentials, nor has its callback failed",
            )
        async with store_errors():
            # First, or else a worker could find the refusal that is to be forgotten.
            for account in map(self._book.current.accounts.get, stuck):
                if account is not None:
                    await self._forgive(account)
            after = await self._desk.requeue(job)
        return await self._answer(202, after or view)

    async def cancel(self, site: Site, job: str) -> Answer:
        """Cancel what has not been sent; what may have been is looked at first, and not sent again.

        Raises Rejected (409) when everything is done.
        """
        before = await self._view(site, job)
        async with store_errors():
            after = await self._desk.cancel(job) or before
        if not any(delivery.shown is Status.CANCELED or delivery.after for delivery in after.deliveries):
            raise Rejected(409, "nothing_to_cancel", "each account of this job is done")
        return await self._answer(200, after)

    async def wait_for_news(self, job: str, timeout_s: float) -> None:
        """Return when something may have happened to `job`, or after `timeout_s`."""
        async with store_errors():
            await self._desk.wait_for_news(job, timeout_s)

    async def _view(self, site: Site, job: str) -> JobView:
        async with store_errors():
            view = await self._desk.read(job, site=site.name)
        if view is None or view.job.site != site.name:
            raise Rejected(404, "not_found", "there is no such job")
        return view

    async def _answer(self, status: int, view: JobView, warnings: tuple[str, ...] = ()) -> Answer:
        body = await self._documents.job(view, warnings)
        return Answer(status=status, body=body, location=body["links"]["self"])

    def _checked(self, site: Site, document: Any) -> tuple[Post, tuple[str, ...]]:
        """The post in `document`, if the site may send it."""
        post, warnings = parse_post(document, now=self._clock.wall())
        strangers = [name for name in post.accounts or () if name not in site.accounts]
        if strangers:
            raise Rejected(403, "account_not_allowed", f"{strangers[0]} is no account of this site")
        named = (("url", post.url), ("callback_url", post.callback_url))
        faults = tuple(
            (f"$.{field}", f"must point to one of the site's hosts: {', '.join(site.hosts)}")
            for field, url in named
            if url is not None and not host_allowed(url, site.hosts)
        )
        if faults:
            raise Faulty("host_not_allowed", "the post points to a host that is not the site's", faults)
        return post, warnings

    async def _enqueue(self, site: Site, post: Post, warnings: tuple[str, ...], key: str | None) -> Answer:
        accounts = _accounts(site, post)
        dids = await self._documents.dids(accounts)
        skip = skip_reason(post, self._clock.wall(), self._policy.max_post_age_s)
        submission = _submission(site, post, dids, key, skip)
        enqueued = await self._desk.enqueue(submission)
        match enqueued.verdict:
            case Verdict.SKIPPED:
                return Answer(status=200, body=self._documents.skipped(skip or Skip.NOT_PUBLISHED, warnings))
            case Verdict.ID_REUSED:
                raise id_reused()
            case Verdict.KEY_REUSED:
                raise key_reused()
            case Verdict.FULL:
                raise too_many_waiting()
            case Verdict.QUEUED | Verdict.UPDATED | Verdict.RECORDED | Verdict.OUTDATED:
                return await self._taken(enqueued, submission, warnings)

    async def _taken(self, enqueued: Enqueued, submission: Submission, warnings: tuple[str, ...]) -> Answer:
        if enqueued.verdict is Verdict.OUTDATED:
            warnings += ("$.revision is older than what is known of this post; nothing was changed",)
        view = enqueued.view
        if view is None and enqueued.job:
            view = await self._readable(enqueued.job) or self._unreadable(enqueued, submission)
        if view is not None:
            return await self._answer(202, view, warnings)
        status = Status(enqueued.state) if enqueued.state in _ENDED else Status.COMPLETED
        records = remembered_records(
            enqueued, site=submission.site, post=submission.post, dids=submission.accounts
        )
        action = Action.DELETE if enqueued.state == "unpublished" else Action.POST
        body = self._documents.remembered(status, records, warnings, action=action)
        return Answer(status=202, body=body)

    async def _readable(self, job: str) -> JobView | None:
        try:
            return await self._desk.read(job)
        except NewerFormat:
            return None

    def _unreadable(self, enqueued: Enqueued, submission: Submission) -> JobView:
        """What can be said of a job that a newer version wrote: it is there."""
        job = Job(
            id=enqueued.job,
            site=submission.site,
            post=submission.post,
            accounts=tuple(submission.accounts),
            payload="",
            revision=submission.revision,
            group=submission.group,
            created_at_ms=int(self._clock.wall() * 1000),
            first_published_at_ms=enqueued.first_published_at_ms,
            generation=enqueued.generation,
        )
        return JobView(job=job, deliveries=(), gates={})

    async def _without_store(self, site: Site, post: Post, warnings: tuple[str, ...]) -> Answer:
        """The one synchronous attempt for a post that would be queued whatever is known of it."""
        now = self._clock.wall()
        skip = skip_reason(post, now, self._policy.max_post_age_s)
        if self._publish_now is None or skip is not None or post.published_at_ms > now * 1000:
            raise store_away()
        accounts = _accounts(site, post)
        published = await self._publish_now(site, post, accounts)
        if any(name not in published for name in accounts):
            raise store_away()
        records = {
            name: (at_uri_authority(published[name].uri), published[name].uri, published[name].cid)
            for name in accounts
        }
        return Answer(status=200, body=self._documents.remembered(Status.COMPLETED, records, warnings))


def _accounts(site: Site, post: Post) -> tuple[str, ...]:
    """Where `post` is to go, each account once."""
    return tuple(dict.fromkeys(post.accounts or site.accounts))


def _checked_key(key: str | None) -> str | None:
    if key is not None and _KEY.fullmatch(key) is None:
        raise Rejected(
            422, "invalid_idempotency_key", "Idempotency-Key must have 1 to 255 printable ASCII characters"
        )
    return key


def _submission(
    site: Site, post: Post, dids: Mapping[str, str], key: str | None, skip: Skip | None
) -> Submission:
    payload_hash = post.payload_hash()
    implicit = json.dumps(["implicit", post.id, post.revision, payload_hash])
    named = implicit if key is None else json.dumps(["explicit", key])
    return Submission(
        job=f"job_{secrets.token_hex(12)}",
        site=site.name,
        post=post.id,
        revision=post.revision,
        payload=post.canonical(),
        payload_hash=payload_hash,
        url_hash=post.url_hash(),
        published_at_ms=post.published_at_ms,
        accounts=dids,
        group=post.group or "",
        priority=post.priority,
        key=hashlib.sha256(named.encode()).hexdigest(),
        explicit_key=key is not None,
        wanted=post.wanted,
        skip=skip or "",
        unpublish=site.unpublish,
        enrich=post.wanted,
        callback_url=post.callback_url or "",
        posts_per_hour=site.posts_per_hour,
        max_waiting=site.max_waiting,
    )

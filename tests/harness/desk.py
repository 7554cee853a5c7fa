"""The queue as the intake sees it, in memory: for faults that a real store does not show on request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from harness.clock import FakeClock
from proxy.errors import StoreError
from proxy.syndication.desk import Enqueued, JobPage, JobView, Submission, Verdict
from proxy.syndication.job import Delivery, DeliveryState, Job, Status, job_status
from proxy.syndication.overview import DeadFilter, ErrorGroup


class MemoryDesk:
    """Does what `Desk` promises, as far as tests of the intake need it; `fault`, if set, is raised."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.fault: StoreError | None = None
        self.views: dict[str, JobView] = {}
        self.submissions: list[Submission] = []
        self.identities: dict[tuple[str, str], Submission] = {}
        self.jobs_of: dict[tuple[str, str], str] = {}
        self.answers: dict[tuple[str, str], tuple[str, Enqueued]] = {}
        self.settings = {"appendonly": "yes", "appendfsync": "everysec"}
        self._changed = asyncio.Condition()

    async def config(self) -> dict[str, str]:
        self._fail()
        return self.settings

    async def enqueue(self, submission: Submission) -> Enqueued:
        self._fail()
        self.submissions.append(submission)
        key = (submission.site, submission.key)
        if key in self.answers:
            payload_hash, answer = self.answers[key]
            if payload_hash != submission.payload_hash:
                return Enqueued(verdict=Verdict.KEY_REUSED)
            return replace(answer, replayed=True)
        answer = await self._decide(submission)
        self.answers[key] = (submission.payload_hash, answer)
        return answer

    async def _decide(self, submission: Submission) -> Enqueued:
        identity = (submission.site, submission.post)
        known = self.identities.get(identity)
        if known is None:
            if submission.skip:
                return Enqueued(verdict=Verdict.SKIPPED)
            waiting = [view for view in self.views.values() if view.job.site == submission.site]
            if len(waiting) >= submission.max_waiting:
                return Enqueued(verdict=Verdict.FULL)
            self.identities[identity] = submission
            self.jobs_of[identity] = submission.job
            self.views[submission.job] = self._created(submission)
            return Enqueued(verdict=Verdict.QUEUED, job=submission.job, view=self.views[submission.job])
        if known.url_hash != submission.url_hash and submission.published_at_ms > known.published_at_ms:
            return Enqueued(verdict=Verdict.ID_REUSED)
        job = self.jobs_of[identity]
        if (submission.revision or 0) < (known.revision or 0):
            return Enqueued(verdict=Verdict.OUTDATED, job=job, view=self.views[job])
        if all(delivery.state is DeliveryState.DONE for delivery in self.views[job].deliveries):
            return Enqueued(verdict=Verdict.RECORDED, job=job, view=self.views[job])
        self.identities[identity] = submission
        changed = replace(self.views[job].job, payload=submission.payload, revision=submission.revision)
        self.views[job] = replace(self.views[job], job=changed)
        if not submission.wanted:
            await self.cancel(job)
        return Enqueued(verdict=Verdict.UPDATED, job=job, view=self.views[job])

    def _created(self, submission: Submission) -> JobView:
        job = Job(
            id=submission.job,
            site=submission.site,
            post=submission.post,
            accounts=tuple(submission.accounts),
            payload=submission.payload,
            revision=submission.revision,
            group=submission.group,
            priority=submission.priority,
            created_at_ms=int(self.clock.wall() * 1000),
            first_published_at_ms=submission.published_at_ms,
        )
        deliveries = tuple(
            Delivery(job=job.id, account=name, site=job.site, state=DeliveryState.READY, did=did)
            for name, did in submission.accounts.items()
        )
        return JobView(job=job, deliveries=deliveries, gates={})

    async def read(self, job: str, *, site: str | None = None) -> JobView | None:
        self._fail()
        view = self.views.get(job)
        return view if view is not None and site in (None, view.job.site) else None

    async def jobs(
        self, site: str, *, status: Status | None, group: str | None, cursor: str | None, limit: int
    ) -> JobPage:
        self._fail()
        found = [
            view
            for view in reversed(self.views.values())
            if view.job.site == site
            and (group is None or view.job.group == group)
            and (status is None or job_status(delivery.shown for delivery in view.deliveries) is status)
        ]
        start = int(cursor) if cursor and cursor.isdecimal() else (len(found) if cursor else 0)
        more = str(start + limit) if start + limit < len(found) else ""
        return JobPage(jobs=tuple(found[start : start + limit]), cursor=more)

    async def errors(self, wanted: DeadFilter) -> tuple[ErrorGroup, ...]:
        self._fail()
        reasons = Counter(
            (delivery.account, delivery.error)
            for view in self.views.values()
            if view.job.site == wanted.site and wanted.group in ("", view.job.group)
            for delivery in view.deliveries
            if delivery.state is DeliveryState.DEAD
        )
        return tuple(
            ErrorGroup(account=account, reason=reason, count=count, last_at_ms=1)
            for (account, reason), count in reasons.items()
        )

    async def cancel(self, job: str) -> JobView | None:
        return await self.change(
            job, DeliveryState.CANCELED, only=(DeliveryState.READY, DeliveryState.DELAYED)
        )

    async def requeue(self, job: str, accounts: Sequence[str] = ()) -> JobView | None:
        return await self.change(job, DeliveryState.READY, only=(DeliveryState.DEAD,), failures=0)

    async def change(
        self,
        job: str,
        state: DeliveryState,
        *,
        only: Sequence[DeliveryState] = tuple(DeliveryState),
        **fields,
    ) -> JobView | None:
        """As if workers had brought each delivery whose state is one of `only` to `state`."""
        self._fail()
        view = self.views.get(job)
        if view is None:
            return None
        deliveries = tuple(
            replace(delivery, state=state, **fields) if delivery.state in only else delivery
            for delivery in view.deliveries
        )
        self.views[job] = replace(view, deliveries=deliveries)
        async with self._changed:
            self._changed.notify_all()
        return self.views[job]

    async def wait_for_news(self, job: str, timeout_s: float) -> None:
        self._fail()
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()
        except TimeoutError:
            return

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault

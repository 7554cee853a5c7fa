"""What this process last heard of closed accounts, for when the queue cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.clock import Clock
from proxy.syndication.desk import Desk, Enqueued, JobPage, JobView, Submission
from proxy.syndication.job import Status
from proxy.syndication.overview import DeadFilter, ErrorGroup


class GateKeeper:
    """A desk that remembers, of every job it shows, which accounts were closed."""

    def __init__(self, desk: Desk, clock: Clock) -> None:
        self._desk = desk
        self._clock = clock
        self._closed_until_ms: dict[str, int] = {}

    def closed(self, account: str) -> bool:
        """Whether the account was paused, or its breaker open, when the queue was last heard of."""
        until_ms = self._closed_until_ms.get(account)
        return until_ms is not None and (until_ms < 0 or until_ms > self._clock.wall() * 1000)

    async def enqueue(self, submission: Submission) -> Enqueued:
        """See Desk."""
        enqueued = await self._desk.enqueue(submission)
        self._note(enqueued.view)
        return enqueued

    async def read(self, job: str, *, site: str | None = None) -> JobView | None:
        """See Desk."""
        return self._note(await self._desk.read(job, site=site))

    async def jobs(
        self, site: str, *, status: Status | None, group: str | None, cursor: str | None, limit: int
    ) -> JobPage:
        """See Desk."""
        page = await self._desk.jobs(site, status=status, group=group, cursor=cursor, limit=limit)
        for view in page.jobs:
            self._note(view)
        return page

    async def errors(self, wanted: DeadFilter) -> tuple[ErrorGroup, ...]:
        """See Desk."""
        return await self._desk.errors(wanted)

    async def cancel(self, job: str) -> JobView | None:
        """See Desk."""
        return self._note(await self._desk.cancel(job))

    async def requeue(self, job: str, accounts: Sequence[str] = ()) -> JobView | None:
        """See Desk."""
        return self._note(await self._desk.requeue(job, accounts))

    async def wait_for_news(self, job: str, timeout_s: float) -> None:
        """See Desk."""
        await self._desk.wait_for_news(job, timeout_s)

    def _note(self, view: JobView | None) -> JobView | None:
        if view is not None:
            for delivery in view.deliveries:
                self._closed_until_ms.pop(delivery.account, None)
            self._closed_until_ms.update({account: until for account, (_, until) in view.gates.items()})
        return view

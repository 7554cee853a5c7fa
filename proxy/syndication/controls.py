"""What operators do to the queue: pause, resume, cancel, try again, drop; and what they see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from proxy.syndication.desk import JobPage, JobView
from proxy.syndication.job import Status
from proxy.syndication.overview import (
    AccountOverview,
    DeadFilter,
    DeadPage,
    ErrorGroup,
    Overview,
    dead_letter_from,
    overview_from,
)
from proxy.syndication.queue import JobQueue

# So many dead letters one script looks at: it holds up the others for a few milliseconds at most.
_AT_A_TIME: Final = 100
_WAKEN: Final = 500
# What a person, and nothing else, opens.
_OPENED_BY_HAND: Final = ("breaker", "credentials")

# A refused login of the account of that name is to be tried once more. Raises StoreError.
ForgiveByName = Callable[[str], Awaitable[None]]


class Controls:
    """The operator's hands on `queue`. Everything raises StoreUnavailable and StoreRefused."""

    def __init__(self, queue: JobQueue, forgive: ForgiveByName) -> None:
        self._queue = queue
        self._forgive = forgive

    async def pause_all(self) -> None:
        """Nothing is handed out any more; what is under way ends. It holds until `resume_all`."""
        await self._queue.run("queue_pause", [1])

    async def resume_all(self) -> None:
        """What waits is handed out again, but for accounts that are paused themselves."""
        await self._queue.run("queue_pause", [0])
        cursor = b"0"
        while (cursor := await self._queue.run("queue_wake", [cursor, _WAKEN])) != b"0":
            pass

    async def pause(self, account: str) -> None:
        """Nothing of `account` is handed out any more."""
        await self._queue.pause(account, paused=True)

    async def resume(self, account: str) -> None:
        """End the pause of `account`; if its breaker or a refused login has closed it, it is tried again."""
        await self._queue.pause(account, paused=False)
        (overview,) = (await self.overview([account])).accounts
        if overview.gate_reason in _OPENED_BY_HAND:
            await self._forgive_refused([overview])
            await self._queue.open_gate(account)

    async def overview(self, accounts: Iterable[str]) -> Overview:
        """How the queue and `accounts` stand."""
        return await self._overview([(account, "", "") for account in accounts])

    async def job(self, job: str) -> tuple[JobView, Overview] | None:
        """The job, and how its accounts stand with it; None if it is not known."""
        view = await self._queue.read(job)
        if view is None:
            return None
        asked = [(delivery.account, delivery.id, delivery.did) for delivery in view.deliveries]
        return view, await self._overview(asked)

    async def jobs(
        self, site: str, *, status: Status | None, group: str | None, cursor: str | None, limit: int
    ) -> JobPage:
        """Jobs of a site, newest first: see desk.Desk."""
        return await self._queue.jobs(site, status=status, group=group, cursor=cursor, limit=limit)

    async def retry(self, job: str) -> JobView | None:
        """Try again what has failed of the job, or waits for credentials; None if it is not known."""
        found = await self.job(job)
        if found is None:
            return None
        await self._forgive_refused(found[1].accounts)
        return await self._queue.requeue(job)

    async def cancel(self, job: str) -> JobView | None:
        """Cancel what has not been sent of the job; None if it is not known."""
        return await self._queue.cancel(job)

    async def dead(self, wanted: DeadFilter, cursor: str = "", limit: int = _AT_A_TIME) -> DeadPage:
        """Dead letters, the newest first. A page may be short, even empty, before the end."""
        place, _, letters = await self._queue.dead("list", wanted, cursor, limit)
        return DeadPage(letters=tuple(map(dead_letter_from, letters)), cursor=place)

    async def errors(self, wanted: DeadFilter) -> tuple[ErrorGroup, ...]:
        """The dead letters that fit, counted by account and reason; the most frequent first."""
        return await self._queue.errors(wanted)

    async def retry_dead(self, wanted: DeadFilter) -> AsyncIterator[int]:
        """Try again what fits, the oldest first; yields how many were, batch by batch."""
        accounts = sorted({group.account for group in await self._queue.errors(wanted)})
        await self._forgive_refused((await self.overview(accounts)).accounts)
        async for count in self._each("retry", wanted):
            yield count

    async def drop_dead(self, wanted: DeadFilter) -> AsyncIterator[int]:
        """Give up what fits: it ends as canceled; yields how many did, batch by batch."""
        async for count in self._each("drop", wanted):
            yield count

    async def _each(self, what: str, wanted: DeadFilter) -> AsyncIterator[int]:
        place = ""
        while True:
            place, count, _ = await self._queue.dead(what, wanted, place, _AT_A_TIME)
            yield count
            if not place:
                return

    async def _overview(self, asked: Iterable[tuple[str, str, str]]) -> Overview:
        flat = [part for each in asked for part in each]
        return overview_from(await self._queue.run("queue_accounts", [self._queue.lease_ms, *flat]))

    async def _forgive_refused(self, accounts: Iterable[AccountOverview]) -> None:
        # Before anything opens, or else a worker could find the refusal that is to be forgotten.
        for overview in accounts:
            if overview.gate_reason == "credentials":
                await self._forgive(overview.account)

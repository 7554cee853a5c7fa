"""Clients that wait for a job to change: long polls and event streams; a shutdown ends them at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from proxy.errors import Rejected
from proxy.events import STILL_HERE, begin, disconnected, end, event, tell
from proxy.syndication.intake import Answer, Intake
from proxy.tenants import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitPolicy:
    """How clients may wait. A job is read again after `look_s` at most and `gap_s` at least, news or not."""

    max_per_site: int = 50
    look_s: float = 5.0
    gap_s: float = 0.1
    heartbeat_s: float = 15.0
    stream_s: float = 3600.0


class Waiters:
    """Long polls and event streams of this process. `draining` is set once the process is to stop."""

    def __init__(self, intake: Intake, draining: asyncio.Event, policy: WaitPolicy) -> None:
        self._intake = intake
        self._draining = draining
        self._policy = policy
        self._waiting: Counter[str] = Counter()

    async def poll(self, site: Site, job: str, receive: Receive, *, wait_s: float) -> Answer:
        """The job once a status in it has changed or it is over, or as it is after `wait_s`.

        Raises Rejected, 429 when the site has too many clients waiting.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + wait_s
        first, over = await self._intake.job(site, job)
        if over or wait_s <= 0:
            return first
        answer = first
        with self._place(site.name):
            async with disconnected(receive) as gone:
                while not over and _statuses(answer) == _statuses(first):
                    left_s = ends_at - loop.time()
                    if left_s <= 0 or not await self._something(job, gone, min(left_s, self._policy.look_s)):
                        break
                    answer, over = await self._intake.job(site, job)
        return answer

    async def stream(self, site: Site, job: str, last_event_id: str | None) -> EventStream | None:
        """The job's events; None if the client has seen the last of them. Raises Rejected (404)."""
        first, over = await self._intake.job(site, job)
        if over and last_event_id == _event_id(first):
            return None
        return EventStream(self, site, job)

    async def documents(
        self, site: Site, job: str, gone: asyncio.Future[Any]
    ) -> AsyncGenerator[Answer | None, None]:
        """The job at each change until it is over or the client has to go; None at each heartbeat.

        Raises Rejected, 429 when the site has too many clients waiting.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._policy.stream_s
        quiet_since = loop.time()
        shown: Answer | None = None
        with self._place(site.name):
            while True:
                answer, over = await self._look(site, job, shown)
                if answer is None:
                    return
                if shown is None or answer.body != shown.body:
                    yield answer
                    shown, quiet_since = answer, loop.time()
                elif loop.time() - quiet_since >= self._policy.heartbeat_s:
                    yield None
                    quiet_since = loop.time()
                if (
                    over
                    or loop.time() >= ends_at
                    or not await self._something(job, gone, self._policy.look_s)
                ):
                    return

    async def _look(self, site: Site, job: str, shown: Answer | None) -> tuple[Answer | None, bool]:
        """The job as it is, or as it was `shown` while the store is away; None once it is swept."""
        try:
            return await self._intake.job(site, job)
        except Rejected as error:
            if shown is not None and error.status == 503:
                return shown, False
            return None, True

    async def _something(self, job: str, gone: asyncio.Future[Any], timeout_s: float) -> bool:
        """Wait for news of `job` up to `timeout_s`; False if there is no more point in waiting."""
        news = asyncio.ensure_future(self._news(job, timeout_s))
        drain = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((news, drain, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return not (drain.done() or gone.done())
        finally:
            for task in (news, drain):
                task.cancel()
            await asyncio.wait((news, drain))

    async def _news(self, job: str, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            await self._intake.wait_for_news(job, timeout_s)
        except Rejected:
            await asyncio.sleep(timeout_s)
        # A queue that cannot listen says at once that there may be news, each time.
        await asyncio.sleep(self._policy.gap_s - (loop.time() - since))

    @contextlib.contextmanager
    def _place(self, site: str) -> Iterator[None]:
        """Count one more waiting client of `site`."""
        if self._waiting[site] >= self._policy.max_per_site:
            raise Rejected(
                429,
                "too_many_streams",
                f"this site has {self._policy.max_per_site} clients waiting for jobs",
                (("Retry-After", "5"),),
            )
        self._waiting[site] += 1
        try:
            yield
        finally:
            self._waiting[site] -= 1
            if not self._waiting[site]:
                del self._waiting[site]


class EventStream:
    """The answer to GET …/events, as an ASGI application."""

    def __init__(self, waiters: Waiters, site: Site, job: str) -> None:
        self._waiters = waiters
        self._site = site
        self._job = job

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there is nothing more to tell. Raises Rejected before the first byte is sent."""
        started = False
        async with (
            disconnected(receive) as gone,
            contextlib.aclosing(self._waiters.documents(self._site, self._job, gone)) as documents,
        ):
            async for answer in documents:
                if not started:
                    await begin(send)
                    started = True
                await tell(send, STILL_HERE if answer is None else _event(answer))
            if not started:  # swept between two looks
                raise Rejected(404, "not_found", "there is no such job")
            if not gone.done():
                await end(send)


def _event(answer: Answer) -> str:
    return event("status", _event_id(answer), answer.body)


def _event_id(answer: Answer) -> str:
    return hashlib.sha256(json.dumps(answer.body).encode()).hexdigest()[:16]


def _statuses(answer: Answer) -> list[str]:
    return [answer.body["status"], *(account["status"] for account in answer.body["accounts"])]

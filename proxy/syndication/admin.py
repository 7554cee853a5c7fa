"""What operators may do to the queue over HTTP: /admin/… with the admin token, or in the dashboard."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from proxy.admin import AdminEdge, document_of, only
from proxy.clock import Clock
from proxy.errors import Rejected
from proxy.syndication.accounts import Accounts
from proxy.syndication.controls import Controls
from proxy.syndication.desk import JobView
from proxy.syndication.job import Status
from proxy.syndication.openapi import CURSOR
from proxy.syndication.overview import DeadFilter
from proxy.syndication.report import (
    account_line,
    dead_line,
    error_lines,
    job_line,
    job_report,
    queue_report,
)

_FILTERS: Final = ("site", "account", "group", "reason", "older_than_s", "newer_than_s")
_PAGES: Final = ("cursor", "limit")
_DEFAULT_PAGE, _MAX_PAGE = 50, 500
# As queue_dead hands it out.
_DEAD_CURSOR: Final = re.compile(r"(?:[0-9]{1,16} [0-9]{1,9})?")


class QueueAdminRoutes:
    """Everything under /admin, or wherever else. `accounts` gives those of feedproxy.toml as they are now."""

    def __init__(
        self, controls: Controls, accounts: Callable[[], Accounts], clock: Clock, edge: AdminEdge
    ) -> None:
        self._controls = controls
        self._accounts = accounts
        self._clock = clock
        self._edge = edge

    def routes(self, base: str = "/admin") -> list[Route]:
        """The routes, all of which lie under `base`."""
        handlers = (
            ("GET", "/queue", self._queue),
            ("POST", "/pause", self._pause),
            ("POST", "/resume", self._resume),
            ("GET", "/jobs", self._jobs),
            ("GET", "/jobs/{job}", self._job),
            ("DELETE", "/jobs/{job}", self._cancel),
            ("POST", "/jobs/{job}/retry", self._retry),
            ("GET", "/dead", self._dead),
            ("GET", "/dead/summary", self._errors),
            ("POST", "/dead/retry", self._retry_dead),
            ("POST", "/dead/drop", self._drop_dead),
        )
        return [self._edge.route(base + path, handler, method) for method, path, handler in handlers]

    async def _queue(self, _request: Request) -> Mapping[str, Any]:
        accounts = self._accounts().accounts
        identifiers = {name: account.identifier for name, account in accounts.items()}
        overview = await self._controls.overview(accounts)
        lines = [account_line(each, identifiers) for each in overview.accounts]
        return {**queue_report(overview), "accounts": lines}

    async def _pause(self, request: Request) -> Mapping[str, Any]:
        account = self._account(await document_of(request))
        await (self._controls.pause_all() if account is None else self._controls.pause(account))
        return {"paused": account or "everything"}

    async def _resume(self, request: Request) -> Mapping[str, Any]:
        account = self._account(await document_of(request))
        await (self._controls.resume_all() if account is None else self._controls.resume(account))
        return {"resumed": account or "everything"}

    async def _jobs(self, request: Request) -> Mapping[str, Any]:
        wanted = only(request.query_params, ("site", "status", "group", *_PAGES))
        site = wanted.get("site", "")
        if not site:
            raise _wrong("site must be the name of a site")
        status = wanted.get("status", "")
        if status and status not in tuple(Status):
            raise _wrong("status must be that of a job, such as failed")
        cursor = wanted.get("cursor", "")
        if cursor and re.fullmatch(CURSOR, cursor) is None:
            raise _wrong("cursor must be what the page before gave")
        page = await self._controls.jobs(
            site,
            status=Status(status) if status else None,
            group=wanted.get("group") or None,
            cursor=cursor or None,
            limit=_limit(wanted),
        )
        return {"jobs": [job_line(view) for view in page.jobs], "cursor": page.cursor or None}

    async def _job(self, request: Request) -> Mapping[str, Any]:
        found = await self._controls.job(request.path_params["job"])
        if found is None:
            raise _no_such_job()
        return job_report(*found)

    async def _cancel(self, request: Request) -> Mapping[str, Any]:
        return _shown(await self._controls.cancel(request.path_params["job"]))

    async def _retry(self, request: Request) -> Mapping[str, Any]:
        return _shown(await self._controls.retry(request.path_params["job"]))

    async def _dead(self, request: Request) -> Mapping[str, Any]:
        wanted = only(request.query_params, (*_FILTERS, *_PAGES))
        cursor = wanted.get("cursor", "")
        if _DEAD_CURSOR.fullmatch(cursor) is None:
            raise _wrong("cursor must be what the page before gave")
        page = await self._controls.dead(self._filter(wanted), cursor, _limit(wanted))
        return {"dead": [dead_line(letter) for letter in page.letters], "cursor": page.cursor or None}

    async def _errors(self, request: Request) -> Mapping[str, Any]:
        wanted = only(request.query_params, _FILTERS)
        return {"errors": error_lines(await self._controls.errors(self._filter(wanted)))}

    async def _retry_dead(self, request: Request) -> Mapping[str, Any]:
        wanted = self._meant(await document_of(request))
        return {"retried": await _total(self._controls.retry_dead(wanted))}

    async def _drop_dead(self, request: Request) -> Mapping[str, Any]:
        wanted = self._meant(await document_of(request))
        return {"dropped": await _total(self._controls.drop_dead(wanted))}

    def _account(self, document: Mapping[str, Any]) -> str | None:
        account = only(document, ("account",)).get("account")
        if account is not None and account not in self._accounts().accounts:
            raise Rejected(404, "NotFound", "there is no such account in feedproxy.toml")
        return account

    def _meant(self, document: Mapping[str, Any]) -> DeadFilter:
        """Which dead letters something is to happen to: all of them only if that is said."""
        everything = document.get("all") is True and len(document) == 1
        if not everything and not only(document, _FILTERS):
            raise _wrong(f'say which dead letters, by {", ".join(_FILTERS)}, or {{"all": true}}')
        return DeadFilter() if everything else self._filter(document)

    def _filter(self, wanted: Mapping[str, Any]) -> DeadFilter:
        texts = {name: wanted.get(name, "") for name in ("site", "account", "group", "reason")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise _wrong("site, account, group and reason must be texts")
        now_ms = round(self._clock.wall() * 1000)
        older_ms, newer_ms = (_age_ms(wanted, name) for name in ("older_than_s", "newer_than_s"))
        return DeadFilter(
            **texts,
            died_from_ms=None if newer_ms is None else now_ms - newer_ms,
            died_until_ms=None if older_ms is None else now_ms - older_ms,
        )


async def _total(batches: AsyncIterator[int]) -> int:
    return sum([count async for count in batches])


def _shown(view: JobView | None) -> Mapping[str, Any]:
    if view is None:
        raise _no_such_job()
    return job_line(view)


def _age_ms(wanted: Mapping[str, Any], name: str) -> int | None:
    given = wanted.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or re.fullmatch(r"[0-9]{1,9}", str(given)) is None:
        raise _wrong(f"{name} must be a whole number of seconds")
    return int(given) * 1000


def _limit(wanted: Mapping[str, Any]) -> int:
    given = wanted.get("limit", str(_DEFAULT_PAGE))
    if re.fullmatch(r"[0-9]{1,4}", given) is None or not 1 <= int(given) <= _MAX_PAGE:
        raise _wrong(f"limit must be a whole number from 1 to {_MAX_PAGE}")
    return int(given)


def _wrong(message: str) -> Rejected:
    return Rejected(400, "InvalidRequest", message)


def _no_such_job() -> Rejected:
    return Rejected(404, "NotFound", "there is no such job")

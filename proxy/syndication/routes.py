"""The HTTP edge of /syndicate: from a request to the intake, from its answer to JSON."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.clients import Trust
from proxy.errors import Rejected
from proxy.syndication.accounts import TokenCheck
from proxy.syndication.document import parse_document
from proxy.syndication.intake import Answer, Intake
from proxy.syndication.job import Status
from proxy.syndication.openapi import (
    CURSOR,
    DEFAULT_PAGE,
    JOB_ID,
    MAX_BATCH_BYTES,
    MAX_PAGE,
    MAX_WAIT_S,
    OPERATIONS,
    openapi_document,
)
from proxy.syndication.post import MAX_POST_BYTES
from proxy.syndication.problems import problem_response
from proxy.syndication.refusals import too_large
from proxy.syndication.waiting import Waiters
from proxy.tenants import Site

_NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_JSON_TYPE = re.compile(r'application/json\s*(;\s*charset="?utf-?8"?\s*)?', re.IGNORECASE)

Handler = Callable[[Request, Site], Awaitable[ASGIApp]]


class SyndicationRoutes:
    """Everything under /syndicate, and /openapi.json.

    `trust` tells who is believed on where a request comes from, for the limit on wrong tokens; `public_url`
    is how the world reaches us.
    """

    def __init__(
        self,
        intake: Intake,
        tokens: TokenCheck,
        waiters: Waiters,
        *,
        trust: Trust | None = None,
        public_url: str | None = None,
    ) -> None:
        self._intake = intake
        self._tokens = tokens
        self._waiters = waiters
        self._trust = trust or Trust()
        self._public_url = public_url

    def routes(self) -> list[BaseRoute]:
        """The routes, one for each path of the operations' table."""
        handlers: dict[str, Handler] = {
            "syndicate": self._syndicate,
            "syndicate_batch": self._syndicate_batch,
            "list_jobs": self._list_jobs,
            "get_job": self._get_job,
            "follow_job": self._follow_job,
            "retry_job": self._retry_job,
            "cancel_job": self._cancel_job,
        }
        paths: dict[str, dict[str, Handler]] = {}
        for operation in OPERATIONS:
            paths.setdefault(operation.path, {})[operation.method] = handlers[operation.id]
        # More literal paths first: /syndicate/batch is no job.
        ordered = sorted(paths, key=lambda path: path.count("{"))
        return [
            *(Route(path, _Path(paths[path], self._authorized)) for path in ordered),
            Route("/syndicate/{rest:path}", _Nowhere()),
            Route("/openapi.json", self._document, methods=["GET"]),
        ]

    def _authorized(self, request: Request) -> Site:
        peer = request.client.host if request.client else None
        client = self._trust.client_of(peer, request.headers.getlist("x-forwarded-for"))
        return self._tokens.site(client.name, request.headers.get("authorization"))

    async def _syndicate(self, request: Request, site: Site) -> ASGIApp:
        key = _idempotency_key(request)
        document = await _document(request, MAX_POST_BYTES)
        return _json(await self._intake.submit(site, document, key))

    async def _syndicate_batch(self, request: Request, site: Site) -> ASGIApp:
        key = _idempotency_key(request)
        document = await _document(request, MAX_BATCH_BYTES)
        return _json(await self._intake.submit_batch(site, document, key))

    async def _list_jobs(self, request: Request, site: Site) -> ASGIApp:
        status = _parameter(request, "status", "|".join(("", *Status)), "a status such as failed")
        if status == Status.SKIPPED:
            raise _bad_parameter("status", "the status of a job; what was skipped has none")
        group = _parameter(request, "group", "(?s:.{0,128})", "a name of at most 128 characters")
        cursor = _parameter(request, "cursor", f"({CURSOR})?", "what the page before gave")
        limit = _whole_number(request, "limit", DEFAULT_PAGE, 1, MAX_PAGE)
        page = await self._intake.jobs(
            site,
            status=Status(status) if status else None,
            group=group or None,
            cursor=cursor or None,
            limit=limit,
        )
        return _json(page)

    async def _get_job(self, request: Request, site: Site) -> ASGIApp:
        job = _job_id(request)
        wait_s = _whole_number(request, "wait", 0, 0, MAX_WAIT_S)
        return _json(await self._waiters.poll(site, job, request.receive, wait_s=wait_s), located=False)

    async def _follow_job(self, request: Request, site: Site) -> ASGIApp:
        stream = await self._waiters.stream(site, _job_id(request), request.headers.get("last-event-id"))
        return stream or Response(status_code=204, headers=_NO_STORE)

    async def _retry_job(self, request: Request, site: Site) -> ASGIApp:
        return _json(await self._intake.retry(site, _job_id(request)))

    async def _cancel_job(self, request: Request, site: Site) -> ASGIApp:
        return _json(await self._intake.cancel(site, _job_id(request)), located=False)

    @cached_property
    def _openapi(self) -> dict[str, Any]:
        """It takes a while, and hardly a process is asked for it."""
        return openapi_document(self._public_url)

    async def _document(self, _request: Request) -> Response:
        return JSONResponse(
            self._openapi,
            headers={"Cache-Control": "public, max-age=300", "X-Content-Type-Options": "nosniff"},
        )


class _Path:
    """One path with its methods: who asks is known before anything else is looked at."""

    def __init__(self, methods: Mapping[str, Handler], authorized: Callable[[Request], Site]) -> None:
        self._methods = methods
        self._authorized = authorized

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
            await answer(scope, receive, send)
        except Rejected as error:
            await problem_response(error)(scope, receive, send)
        except ClientDisconnect:
            return  # nobody is left to answer

    async def _answer(self, request: Request) -> ASGIApp:
        handler = self._methods.get(request.method)
        if handler is None:
            allow = ", ".join(sorted(self._methods))
            raise Rejected(405, "method_not_allowed", f"possible here: {allow}", (("Allow", allow),))
        return await handler(request, self._authorized(request))


class _Nowhere:
    """What lies below /syndicate and is no path of ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say so."""
        await problem_response(_no_such_job())(scope, receive, send)


async def _document(request: Request, limit_bytes: int) -> Any:
    """The JSON document in the body, which is read no further than `limit_bytes`."""
    if _JSON_TYPE.fullmatch(request.headers.get("content-type", "").strip()) is None:
        raise Rejected(415, "unsupported_media_type", "the body must be application/json in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Rejected(415, "unsupported_media_type", "the body must not be compressed")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise too_large(limit_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large(limit_bytes)
    return parse_document(bytes(body))


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise Rejected(422, "invalid_idempotency_key", "there is more than one Idempotency-Key")
    return keys[0] if keys else None


def _job_id(request: Request) -> str:
    job: str = request.path_params["job"]
    if re.fullmatch(JOB_ID, job, re.ASCII) is None:
        raise _no_such_job()
    return job


def _no_such_job() -> Rejected:
    return Rejected(404, "not_found", "there is no such job")


def _parameter(request: Request, name: str, pattern: str, meaning: str) -> str | None:
    """The parameter `name` of the query, None if it is absent; it must fit `pattern`."""
    values = request.query_params.getlist(name)
    if len(values) > 1 or any(re.fullmatch(pattern, value) is None for value in values):
        raise _bad_parameter(name, meaning)
    return values[0] if values else None


def _whole_number(request: Request, name: str, default: int, lowest: int, highest: int) -> int:
    meaning = f"a whole number from {lowest} to {highest}"
    value = _parameter(request, name, "[0-9]{1,9}", meaning)
    if value is None:
        return default
    if not lowest <= int(value) <= highest:
        raise _bad_parameter(name, meaning)
    return int(value)


def _bad_parameter(name: str, meaning: str) -> Rejected:
    return Rejected(422, "invalid_parameter", f"{name} must be {meaning}")


def _json(answer: Answer, *, located: bool = True) -> JSONResponse:
    headers = {**_NO_STORE, "Location": answer.location} if located and answer.location else _NO_STORE
    return JSONResponse(answer.body, status_code=answer.status, headers=headers)

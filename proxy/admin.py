"""What all admin routes have in common: who may ask, and what they are told that went wrong."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.clients import Trust
from proxy.errors import Rejected, StoreError
from proxy.resilience.admin_token import AdminToken

MAX_BODY_BYTES: Final = 64 * 1024
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Handler = Callable[[Request], Awaitable[Mapping[str, Any]]]
# Raises Rejected for whoever may not do as asked.
Check = Callable[[Request], None]


def client_name(request: Request, trust: Trust) -> str:
    """Who asks, as limits call it."""
    peer = request.client.host if request.client is not None else None
    return trust.client_of(peer, request.headers.getlist("x-forwarded-for")).name


def bearer_check(token: AdminToken, trust: Trust) -> Check:
    """See that requests carry `token`; `trust` tells who shows it."""

    def check(request: Request) -> None:
        token.check(client_name(request, trust), request.headers.get("authorization"))

    return check


class AdminEdge:
    """The edge of routes for operators, each of whose requests has to pass `check`."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def route(self, path: str, handler: Handler, method: str) -> Route:
        """A route to `handler`: its answer as JSON, or what it raises of Rejected and StoreError."""

        async def answer(request: Request) -> Response:
            try:
                self._check(request)
                return JSONResponse(await handler(request), headers=_HEADERS)
            except Rejected as error:
                return _refusal(error)
            except StoreError:
                message = "the store does not answer, or refuses: see /health, and repeat it"
                return _refusal(Rejected(503, "StoreUnavailable", message, (("Retry-After", "2"),)))

        return Route(path, answer, methods=[method])


async def document_of(request: Request) -> Mapping[str, Any]:
    """The JSON object in the body; an empty one if there is no body. Raises Rejected."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise Rejected(413, "PayloadTooLarge", "the document is too large")
    try:
        document = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Rejected(400, "InvalidRequest", "the body is not a JSON object")
    return document


def only(document: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """`document`, which may have members of `names` only: a misspelt filter must not mean everything."""
    strangers = sorted(set(document) - set(names))
    if strangers:
        raise Rejected(400, "InvalidRequest", f"{strangers[0]!r} is none of {', '.join(names)}")
    return document


def _refusal(error: Rejected) -> Response:
    return JSONResponse(
        {"error": error.code, "message": error.message},
        status_code=error.status,
        headers={**_HEADERS, **dict(error.headers)},
    )

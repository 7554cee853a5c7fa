"""The operator's way to declare cached answers dead: POST /purge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.clients import Trust
from proxy.errors import Rejected, StoreError
from proxy.feeds.key import FeedKey, canonical_key
from proxy.feeds.purge import Purges
from proxy.feeds.service import FeedService
from proxy.resilience.admin_token import AdminToken
from proxy.syntax import is_did, is_handle

MAX_BODY_BYTES: Final = 64 * 1024
_RESOLVE: Final = "com.atproto.identity.resolveHandle"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class AdminRoutes:
    """`token` is the operator's; without one the route does not exist. `trust` tells who shows it."""

    def __init__(self, purges: Purges, service: FeedService, token: AdminToken, trust: Trust) -> None:
        self._purges = purges
        self._service = service
        self._token = token
        self._trust = trust

    def routes(self) -> list[Route]:
        """The route, if there is a token."""
        return [Route("/purge", self._purge, methods=["POST"])] if self._token.is_set else []

    async def _purge(self, request: Request) -> Response:
        peer = request.client.host if request.client else None
        client = self._trust.client_of(peer, request.headers.getlist("x-forwarded-for"))
        try:
            self._token.check(client.name, request.headers.get("authorization"))
            wanted = await _document(request)
            number = await self._carry_out(wanted)
        except Rejected as error:
            return _error(error.status, error.code, error.message, dict(error.headers))
        except StoreError:
            return _error(
                503,
                "StoreUnavailable",
                "Redis does not answer: the purge holds in this process only. Repeat it.",
                {"Retry-After": "2"},
            )
        return JSONResponse({"purged": wanted, "number": number}, headers=_HEADERS)

    async def _carry_out(self, wanted: Mapping[str, Any]) -> int:
        match wanted:
            case {"actor": str(actor)} if len(wanted) == 1 and (is_did(actor) or is_handle(actor.lower())):
                await self._learn_did(actor)
                return await self._purges.purge_actor(actor)
            case {"key": str(target)} if len(wanted) == 1:
                return await self._purges.purge_key(_key(target))
            case {"all": True} if len(wanted) == 1:
                return await self._purges.purge_all()
        raise Rejected(
            400, "InvalidRequest", 'say {"actor": handle or DID}, {"key": "/xrpc/…"} or {"all": true}'
        )

    async def _learn_did(self, actor: str) -> None:
        """Handle and DID are one account: ask who it is, if that is not known, before it is purged."""
        if not is_did(actor) and not self._purges.is_known(actor.lower()):
            # What comes of it is learned at the fill; without an answer, the handle alone is purged.
            await self._service.answer(FeedKey(_RESOLVE, (("handle", actor.lower()),)))


async def _document(request: Request) -> Mapping[str, Any]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise Rejected(413, "PayloadTooLarge", "the document is too large")
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, dict):
        raise Rejected(400, "InvalidRequest", "the body is not a JSON object")
    return wanted


def _key(target: str) -> FeedKey:
    path, _, query = target.partition("?")
    if not path.startswith("/xrpc/"):
        raise Rejected(400, "InvalidRequest", "a key begins with /xrpc/")
    nsid = path.removeprefix("/xrpc/").removesuffix("/")
    return canonical_key(nsid, query.encode(), labelers=None, language=None)


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(
        {"error": code, "message": message}, status_code=status, headers={**_HEADERS, **(headers or {})}
    )

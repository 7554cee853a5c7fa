"""The HTTP edge of /xrpc: from ASGI to a question, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from proxy.errors import Rejected
from proxy.feeds.desk import Desk
from proxy.feeds.headers import Manner, preflight
from proxy.feeds.key import FeedKey, canonical_key
from proxy.feeds.methods import METHODS
from proxy.feeds.reply import Replies, Reply

_TARGET = re.compile(rb"/xrpc/([A-Za-z0-9.-]{1,320})/?")


class FeedRoutes:
    """The ASGI application under /xrpc."""

    def __init__(self, desk: Desk, replies: Replies, manner: Manner) -> None:
        self._desk = desk
        self._replies = replies
        self._manner = manner

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request. Its body, if there is one, is not read."""
        request = _headers_of(scope)
        if scope["method"] == "OPTIONS":
            origin, wanted = request.get("origin"), request.get("access-control-request-headers")
            reply = Reply(204, preflight(self._manner, origin, wanted), b"")
        else:
            reply = await self._reply(scope, request)
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        body = b"" if scope["method"] == "HEAD" else reply.body
        await send({"type": "http.response.body", "body": body})

    async def _reply(self, scope: Scope, request: Mapping[str, str]) -> Reply:
        terms = self._replies.terms(
            request.get("accept-encoding"), request.get("origin"), request.get("if-none-match")
        )
        nsid = None
        try:
            nsid = _nsid(scope)
            key = _key(scope, nsid, request)
        except Rejected as error:
            return self._desk.reject(error, nsid, terms)
        peer = scope.get("client")
        return await self._desk.reply(key, peer[0] if peer else None, request.get("x-forwarded-for"), terms)


def _headers_of(scope: Scope) -> dict[str, str]:
    """Request headers by lower-case name; repeated ones are joined, as lists are (RFC 9110 §5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _raw_path(scope: Scope) -> bytes:
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    return raw_path.partition(b"?")[0]


def _nsid(scope: Scope) -> str:
    # The raw path: nothing percent-encoded or relative is resolved into a method name.
    match = _TARGET.fullmatch(_raw_path(scope))
    if match is None:
        raise Rejected(400, "InvalidRequest", "invalid xrpc path")
    return match[1].decode("ascii")


def _key(scope: Scope, nsid: str, request: Mapping[str, str]) -> FeedKey:
    if nsid in METHODS and scope["method"] not in ("GET", "HEAD"):
        message = f"Incorrect HTTP method ({scope['method']}) expected GET"
        raise Rejected(405, "InvalidRequest", message, (("allow", "GET, HEAD, OPTIONS"),))
    return canonical_key(
        nsid,
        scope["query_string"],
        labelers=request.get("atproto-accept-labelers"),
        language=request.get("accept-language"),
    )

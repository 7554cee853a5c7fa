"""The HTTP edge of /xrpc: from ASGI to a key, from an answer to headers and bytes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from proxy.clock import Clock
from proxy.errors import Rejected
from proxy.feeds.headers import (
    Headers,
    Manner,
    accepted_coding,
    cache_status,
    cors,
    etag_matches,
    freshness_headers,
    preflight,
    vary,
)
from proxy.feeds.held import Held
from proxy.feeds.key import FeedKey, canonical_key
from proxy.feeds.methods import METHODS
from proxy.feeds.service import Answer, FeedService

_TARGET = re.compile(rb"/xrpc/([A-Za-z0-9.-]{1,320})/?")
_JSON = b"application/json; charset=utf-8"


class FeedRoutes:
    """The ASGI application under /xrpc."""

    def __init__(self, service: FeedService, manner: Manner, clock: Clock) -> None:
        self._service = service
        self._manner = manner
        self._clock = clock

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request. Its body, if there is one, is not read."""
        request = _headers_of(scope)
        nsid: str | None = None
        try:
            if scope["method"] == "OPTIONS":
                headers = preflight(
                    self._manner, request.get("origin"), request.get("access-control-request-headers")
                )
                await _send(send, 204, headers, b"")
                return
            nsid = _nsid(scope)
            key = _key(scope, nsid, request)
        except Rejected as error:
            await self._reject(scope, send, request, error, nsid)
            return
        answer = await self._service.answer(key, (scope.get("client") or ("",))[0])
        if answer.held is None:
            await self._fail(scope, send, request, key, answer)
        else:
            await self._serve(scope, send, request, key, answer, answer.held)

    async def _serve(
        self, scope: Scope, send: Send, request: Mapping[str, str], key: FeedKey, answer: Answer, held: Held
    ) -> None:
        entry = held.entry
        coding = accepted_coding(request.get("accept-encoding"), entry.bodies)
        etag = entry.etag(coding)
        headers = [
            (b"cache-status", cache_status(answer, self._clock.steady())),
            *freshness_headers(answer, self._manner, now=self._clock.steady(), wall_now=self._clock.wall()),
            (b"etag", etag.encode("ascii")),
            *self._common(request, key.nsid),
        ]
        if entry.labelers is not None:
            headers.append((b"atproto-content-labelers", entry.labelers.encode("latin-1")))
        if not entry.negative and etag_matches(request.get("if-none-match"), etag):
            await _send(send, 304, headers, b"")
            return
        body = entry.bodies[coding]
        headers += [
            (b"content-type", entry.content_type.encode("latin-1")),
            (b"content-length", str(len(body)).encode("ascii")),
        ]
        if coding != "identity":
            headers.append((b"content-encoding", coding.encode("ascii")))
        await _send(send, entry.status, headers, b"" if scope["method"] == "HEAD" else body)

    async def _fail(
        self, scope: Scope, send: Send, request: Mapping[str, str], key: FeedKey, answer: Answer
    ) -> None:
        error = answer.error
        assert error is not None  # noqa: S101  (an answer has either)
        headers = [
            (b"cache-status", cache_status(answer, self._clock.steady())),
            *freshness_headers(answer, self._manner, now=0, wall_now=0),
            *self._common(request, key.nsid),
        ]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode("ascii")))
        await _send_error(scope, send, error.status, error.code, error.message, headers)

    async def _reject(
        self, scope: Scope, send: Send, request: Mapping[str, str], error: Rejected, nsid: str | None
    ) -> None:
        headers = [
            (b"cache-status", b"feedproxy; detail=rejected"),
            (b"cache-control", b"no-store"),
            *self._common(request, nsid),
            *((name.lower().encode("ascii"), value.encode("latin-1")) for name, value in error.headers),
        ]
        await _send_error(scope, send, error.status, error.code, error.message, headers)

    def _common(self, request: Mapping[str, str], nsid: str | None) -> Headers:
        return [
            (b"vary", vary(self._manner, nsid)),
            (b"x-content-type-options", b"nosniff"),
            *cors(self._manner, request.get("origin")),
        ]


def _headers_of(scope: Scope) -> dict[str, str]:
    """Request headers by lower-case name; repeated ones are joined, as lists are (RFC 9110 §5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _nsid(scope: Scope) -> str:
    # The raw path: nothing percent-encoded or relative is resolved into a method name.
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    match = _TARGET.fullmatch(raw_path.partition(b"?")[0])
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


async def _send_error(
    scope: Scope, send: Send, status: int, code: str, message: str, headers: Headers
) -> None:
    body = json.dumps({"error": code, "message": message}, ensure_ascii=False).encode()
    headers += [(b"content-type", _JSON), (b"content-length", str(len(body)).encode("ascii"))]
    await _send(send, status, headers, b"" if scope["method"] == "HEAD" else body)


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

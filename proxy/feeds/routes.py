"""The HTTP edge of /xrpc: from ASGI to a question, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from proxy.clients import Client, Trust
from proxy.clock import Clock
from proxy.errors import Rejected, UpstreamError
from proxy.feeds.actors import Actors
from proxy.feeds.counting import ReadTally
from proxy.feeds.headers import Manner, preflight
from proxy.feeds.hits import Hits
from proxy.feeds.key import FeedKey, canonical_key
from proxy.feeds.methods import METHODS
from proxy.feeds.reply import Replies, Reply
from proxy.feeds.service import Answer, FeedService, Served

_HITS = frozenset((Served.HIT, Served.STALE_WHILE_REVALIDATE, Served.STALE_IF_ERROR))

_TARGET = re.compile(rb"/xrpc/([A-Za-z0-9.-]{1,320})/?")


class FeedRoutes:
    """The ASGI application under /xrpc."""

    def __init__(
        self,
        service: FeedService,
        actors: Actors,
        replies: Replies,
        hits: Hits,
        reads: ReadTally,
        manner: Manner,
        trust: Trust,
        clock: Clock,
    ) -> None:
        self._service = service
        self._actors = actors
        self._replies = replies
        self._hits = hits
        self._reads = reads
        self._clock = clock
        self._manner = manner
        self._trust = trust

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
        nsid, asked_at = None, self._clock.steady()
        try:
            nsid = _nsid(scope)
            key = _key(scope, nsid, request)
            answer = await self._answer(key, self._client(scope, request))
        except Rejected as error:
            self._reads.rejected(nsid, self._clock.steady() - asked_at)
            return self._replies.reject(error, nsid, terms)
        self._reads.answered(nsid, answer, self._clock.steady() - asked_at)
        if answer.held is None:
            assert answer.error is not None  # noqa: S101  (an answer has either)
            return self._replies.fail(answer, answer.error, key.nsid, terms)
        if answer.served in _HITS and scope["method"] == "GET":
            self._hits.learn(_target(scope), key)
        return self._replies.serve(answer, answer.held, key.nsid, terms)

    async def _answer(self, key: FeedKey, client: Client) -> Answer:
        """Raises Rejected."""
        try:
            await self._actors.check(key)
        except UpstreamError as error:
            return Answer(served=Served.ERROR, error=error)
        return await self._service.answer(key, client)

    def _client(self, scope: Scope, request: Mapping[str, str]) -> Client:
        peer = scope.get("client")
        forwarded = request.get("x-forwarded-for")
        return self._trust.client_of(peer[0] if peer else None, [] if forwarded is None else [forwarded])


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


def _target(scope: Scope) -> bytes:
    """Path and query as they were sent."""
    query: bytes = scope["query_string"]
    return _raw_path(scope) + b"?" + query if query else _raw_path(scope)


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

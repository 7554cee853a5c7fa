"""From an answer to status, headers and body, whichever way they are sent."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.clock import Clock
from proxy.edge import response_bytes
from proxy.errors import Rejected, UpstreamError
from proxy.feeds.answer import Answer
from proxy.feeds.headers import (
    Headers,
    Manner,
    cache_status,
    cors,
    etag_matches,
    first_coding,
    freshness_headers,
    liked_codings,
    listed_origin,
    vary,
)
from proxy.feeds.held import Held

_JSON = b"application/json; charset=utf-8"


class Terms(NamedTuple):
    """What else than its target chooses the reply to a request: as little as makes a difference.

    There are few distinct `codings` (liked, best first) and `origin`s, whatever clients write.
    """

    codings: tuple[str, ...] = ()
    origin: str | None = None
    if_none_match: str | None = None


@dataclass(slots=True)
class Reply:
    """A response, whole. Whoever is told the same may share it."""

    status: int
    headers: Headers
    body: bytes
    _sent: bytes = field(default=b"", repr=False, compare=False)
    _sent_after: Headers | None = field(default=None, repr=False, compare=False)

    def as_sent(self, default_headers: Headers, *, last: bool = False) -> bytes:
        """The response as it goes out, `default_headers` first; after the `last` one the connection ends.

        It is made once for all who share it.
        """
        if last:
            headers = [*default_headers, *self.headers, (b"connection", b"close")]
            return response_bytes(self.status, headers, self.body)
        if self._sent_after is not default_headers:
            self._sent = response_bytes(self.status, [*default_headers, *self.headers], self.body)
            self._sent_after = default_headers
        return self._sent


class Replies:
    """Says to clients what became of their questions, in the operator's manner."""

    def __init__(self, manner: Manner, clock: Clock) -> None:
        self._manner = manner
        self._clock = clock

    def terms(
        self, accept_encoding: str | None, origin: str | None, if_none_match: str | None = None
    ) -> Terms:
        """The terms of a request that says this in its head; None where it says nothing."""
        return Terms(liked_codings(accept_encoding), listed_origin(self._manner, origin), if_none_match)

    def reply(self, answer: Answer, nsid: str, terms: Terms) -> Reply:
        """What `answer` says."""
        if answer.held is not None:
            return self.serve(answer, answer.held, nsid, terms)
        assert answer.error is not None  # noqa: S101  (an answer has either)
        return self.fail(answer, answer.error, nsid, terms)

    def serve(self, answer: Answer, held: Held, nsid: str, terms: Terms) -> Reply:
        """The stored answer `held`, in the coding that the client likes best."""
        entry, now = held.entry, self._clock.steady()
        coding = first_coding(terms.codings, entry.bodies)
        etag = entry.etag(coding)
        headers = [
            (b"cache-status", cache_status(answer, now)),
            *freshness_headers(answer, self._manner, now=now, wall_now=self._clock.wall()),
            (b"etag", etag.encode("ascii")),
            *self._common(nsid, terms),
        ]
        if entry.labelers is not None:
            headers.append((b"atproto-content-labelers", entry.labelers.encode("latin-1")))
        if not entry.negative and etag_matches(terms.if_none_match, etag):
            return Reply(304, headers, b"")
        body = entry.bodies[coding]
        headers += [
            (b"content-type", entry.content_type.encode("latin-1")),
            (b"content-length", str(len(body)).encode("ascii")),
        ]
        if coding != "identity":
            headers.append((b"content-encoding", coding.encode("ascii")))
        return Reply(entry.status, headers, body)

    def fail(self, answer: Answer, error: UpstreamError, nsid: str, terms: Terms) -> Reply:
        """The upstream's trouble, for which there is no copy to make up."""
        headers = [
            (b"cache-status", cache_status(answer, self._clock.steady())),
            *freshness_headers(answer, self._manner, now=0, wall_now=0),
            *self._common(nsid, terms),
        ]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode("ascii")))
        return _error(error.status, error.code, error.message, headers)

    def reject(self, error: Rejected, nsid: str | None, terms: Terms) -> Reply:
        """What is wrong with the request."""
        headers = [
            (b"cache-status", b"feedproxy; detail=rejected"),
            (b"cache-control", b"no-store"),
            *self._common(nsid, terms),
            *((name.lower().encode("ascii"), value.encode("latin-1")) for name, value in error.headers),
        ]
        return _error(error.status, error.code, error.message, headers)

    def _common(self, nsid: str | None, terms: Terms) -> Headers:
        return [
            (b"vary", vary(self._manner, nsid)),
            (b"x-content-type-options", b"nosniff"),
            *cors(self._manner, terms.origin),
        ]


def _error(status: int, code: str, message: str, headers: Headers) -> Reply:
    body = json.dumps({"error": code, "message": message}, ensure_ascii=False).encode()
    headers += [(b"content-type", _JSON), (b"content-length", str(len(body)).encode("ascii"))]
    return Reply(status, headers, body)

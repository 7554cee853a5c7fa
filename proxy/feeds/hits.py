"""Plain requests, answered below ASGI: hits by a look-up and a write, others when a flight has landed.

What is at hand for a request is found by its very bytes. Requests that are not plain, and what is no question
at all, go the ordinary way (routes.py).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.errors import Rejected
from proxy.feeds.actors import Actors
from proxy.feeds.counting import ReadTally
from proxy.feeds.desk import Desk
from proxy.feeds.flight import Flight
from proxy.feeds.headers import Headers
from proxy.feeds.held import Held
from proxy.feeds.key import FeedKey, canonical_key
from proxy.feeds.memory import MemoryCache
from proxy.feeds.methods import METHODS
from proxy.feeds.outcome import Outcome
from proxy.feeds.passengers import Passengers
from proxy.feeds.plain import Plain, plain
from proxy.feeds.reply import Replies, Reply, Terms
from proxy.feeds.service import FeedService
from proxy.short_cut import Deliver, Later
from proxy.tracing import Spans, Trace, answering

# Of other characters, parsers have different views.
_TARGET = re.compile(rb"/xrpc/([A-Za-z0-9.-]{1,320})/?(?:\?([A-Za-z0-9._~!$&'()*+,;=:@/?%-]*))?")
# What an entry of a table costs besides its bytes.
_OVERHEAD_BYTES: Final = 400
# So many texts are kept of a target: as it came, and those that its key has of it.
_TEXTS_OF_TARGET: Final = 5


@dataclass(slots=True)
class _Ready:
    """The answer to `key` on these `terms`, ready to be sent and counted in `cell`.

    `response` is true until the steady instant `until`. It was made from the `version` of a held answer, last
    seen in memory when that had changed `seen` times.
    """

    key: FeedKey
    terms: Terms
    response: bytes = b""
    until: float = -math.inf
    cell: int = 0
    version: tuple[str, float] | None = None
    seen: int = -1


class Hits:
    """What was lately asked for, as raw bytes, with the answers to it.

    All of it takes up `room_bytes` at most: when that is used up, it begins anew.
    """

    def __init__(
        self,
        desk: Desk,
        service: FeedService,
        memory: MemoryCache[Held],
        actors: Actors,
        passengers: Passengers,
        replies: Replies,
        reads: ReadTally,
        spans: Spans,
        clock: Clock,
        *,
        room_bytes: int,
    ) -> None:
        self._desk = desk
        self._service = service
        self._memory = memory
        self._actors = actors
        self._passengers = passengers
        self._replies = replies
        self._reads = reads
        self._cells = reads.cells
        self._spans = spans
        self._clock = clock
        self._room_bytes = room_bytes
        self._size_bytes = 0
        self._keys: dict[bytes, FeedKey] = {}  # by target
        self._asked: dict[bytes, _Ready] = {}  # by request
        self._ready: dict[tuple[str, Terms], _Ready] = {}

    @property
    def size_bytes(self) -> int:
        """What is remembered, overhead included."""
        return self._size_bytes

    @property
    def remembered(self) -> tuple[int, int]:
        """How many requests and how many answers are remembered."""
        return len(self._asked), len(self._ready)

    def answer(self, data: bytes, peer: str | None, default_headers: Headers) -> bytes | Later | None:
        """The answer to `data`, or what will deliver it; None unless that is one plain request.

        `data` is what `peer` (None: a unix socket) sent on a connection on which nothing else is under way;
        `default_headers` begin the head of every answer.
        """
        ready = self._asked.get(data)
        if ready is None:
            return self._first(data, peer, default_headers)
        due = ready.seen != self._memory.changes or self._clock.steady() >= ready.until
        if due and not self._renewed(ready, default_headers):
            request = plain(data)
            assert request is not None  # noqa: S101  (it was when it was first asked)
            return functools.partial(self._later, request, ready.key, ready.terms, peer)
        self._cells[ready.cell] += 1
        return ready.response

    def _first(self, data: bytes, peer: str | None, default_headers: Headers) -> bytes | Later | None:
        """As `answer`, for a request that was not answered at once before."""
        request = plain(data)
        key = None if request is None else self._key(request.target)
        if request is None or key is None:
            return None
        said = request.fields
        terms = self._replies.terms(said.get(b"accept-encoding"), said.get(b"origin"))
        ready = self._ready.get((key.digest, terms)) or _Ready(key, terms)
        if not (self._actors.allows(key) and self._renewed(ready, default_headers)):
            return functools.partial(self._later, request, key, terms, peer)
        self._remember(ready, b"" if request.secret else data)
        self._cells[ready.cell] += 1
        return ready.response

    def _key(self, target: bytes) -> FeedKey | None:
        """What `target` asks for; None if the ordinary way has to say."""
        key = self._keys.get(target)
        match = _TARGET.fullmatch(target) if key is None else None
        if match is None:
            return key
        nsid = match[1].decode("ascii")
        if nsid not in METHODS or METHODS[nsid].uses_language:
            return None
        try:
            key = canonical_key(nsid, match[2] or b"", labelers=None, language=None)
        except Rejected:
            return None
        text_bytes = _TEXTS_OF_TARGET * len(target)
        self._see_to_room(text_bytes)
        self._keys[target] = key
        self._size_bytes += text_bytes + _OVERHEAD_BYTES
        return key

    def _later(
        self, request: Plain, key: FeedKey, terms: Terms, peer: str | None, deliver: Deliver
    ) -> Callable[[], None] | None:
        """See Later in short_cut."""
        anew = functools.partial(self._in_time, request, key, terms, peer)
        # A span lasts for as long as a task is at it.
        if self._spans.kept or not self._actors.allows(key):
            deliver(anew())
            return None
        start = functools.partial(self._start, request, key, peer)
        return self._passengers.board(key, terms, start=start, anew=anew, deliver=deliver)

    def _start(self, request: Plain, key: FeedKey, peer: str | None) -> Flight[Outcome] | None:
        with self._answering(request):
            return self._service.start(key, self._desk.client(peer, request.fields.get(b"x-forwarded-for")))

    async def _in_time(self, request: Plain, key: FeedKey, terms: Terms, peer: str | None) -> Reply:
        """The reply to `request`, when it is found."""
        forwarded = request.fields.get(b"x-forwarded-for")
        with self._answering(request):
            return await self._desk.reply(key, peer, forwarded, terms)

    def _answering(self, request: Plain) -> AbstractContextManager[Trace]:
        path = request.target.partition(b"?")[0].decode("ascii")
        return answering(self._spans, "GET", path, request.fields.get(b"traceparent"))

    def _renewed(self, ready: _Ready, default_headers: Headers) -> bool:
        """Whether there is an answer at once; it is `ready` then until its age is a second more.

        Whether a refresh that is under way fails is seen after that second.
        """
        now, changes = self._clock.steady(), self._memory.changes
        if now < ready.until:
            held = self._memory.get(ready.key.digest)
            if held is not None and held.version == ready.version:
                ready.seen = changes
                return True
        answer = self._service.at_once(ready.key)
        if answer is None or answer.held is None:
            return False
        held = answer.held
        response = self._replies.serve(answer, held, ready.key.nsid, ready.terms).as_sent(default_headers)
        if ready.response:
            self._size_bytes += len(response) - len(ready.response)
        age_s, turns = held.age_s(now), (held.life.refresh_at_s, held.life.fresh_until_s)
        ready.response = response
        ready.until = held.born_at + min([math.floor(age_s) + 1, *(turn for turn in turns if turn > age_s)])
        ready.cell = self._reads.cell(ready.key.nsid, answer)
        ready.version, ready.seen = held.version, changes
        return True

    def _remember(self, ready: _Ready, data: bytes) -> None:
        """Have `ready` at hand, and find it by the request `data` unless that is empty."""
        if len(ready.response) > self._room_bytes // 4:
            return
        self._see_to_room(len(data) + len(ready.response))
        question = ready.key.digest, ready.terms
        if question not in self._ready:
            self._ready[question] = ready
            self._size_bytes += len(ready.response) + _OVERHEAD_BYTES
        if data:
            self._asked[data] = ready
            self._size_bytes += len(data) + _OVERHEAD_BYTES

    def _see_to_room(self, text_bytes: int) -> None:
        """Begin anew if there is no room for so much and what it costs besides."""
        if self._size_bytes + text_bytes + 2 * _OVERHEAD_BYTES > self._room_bytes:
            self._keys.clear()
            self._asked.clear()
            self._ready.clear()
            self._size_bytes = 0

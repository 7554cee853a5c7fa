"""Hits, answered below ASGI: a look-up and a write.

The ordinary way (routes.py) teaches this one: each GET that was a hit leaves its target here, and the next
that is plainly the same question gets its answer without being parsed. Whatever is not plain, or not in
memory, takes the ordinary way.
"""

from __future__ import annotations

import math
import re
from typing import Final, Generic, TypeVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from proxy.clock import Clock
from proxy.feeds.counting import ReadTally
from proxy.feeds.headers import Headers
from proxy.feeds.held import Held, Written
from proxy.feeds.key import FeedKey
from proxy.feeds.memory import MemoryCache
from proxy.feeds.methods import METHODS
from proxy.feeds.reply import Replies, Terms
from proxy.feeds.service import FeedService

MAX_TARGETS: Final = 4096
MAX_HEADS: Final = 1024
# Where only some accounts are served: which those are changes when handles move, and is seen so much later.
RECHECK_S: Final = 60.0
MAX_HEAD_BYTES: Final = 4096
# Wishes of clients (ranks of codings, listed origins) for which one answer is kept ready.
MAX_WRITTEN: Final = 16

_BEGIN: Final = b"GET /xrpc/"
_VERSION: Final = b" HTTP/1.1\r\n"
# Nothing that a parser might read in another way: no folded line, no bare LF, no control characters.
_PLAIN = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+\r\n")
# The fields that matter. Of those in the first line a plain head may have some, of the others none.
_FIELD = re.compile(
    rb"^(host|accept-encoding|origin|cookie|authorization|proxy-authorization"
    rb"|connection|content-length|expect|proxy-connection|transfer-encoding|upgrade"
    rb"|atproto-accept-labelers|if-none-match):([^\r]*)",
    re.IGNORECASE | re.MULTILINE,
)
_CHOOSING: Final = frozenset((b"host", b"accept-encoding", b"origin"))
_SECRET: Final = frozenset((b"cookie", b"authorization", b"proxy-authorization"))

K = TypeVar("K")
V = TypeVar("V")


class _Bounded(Generic[K, V]):
    """A dictionary that forgets the oldest beyond `max_items`."""

    def __init__(self, max_items: int) -> None:
        self._items: dict[K, V] = {}
        self._max_items = max_items
        self.get = self._items.get

    def __len__(self) -> int:
        return len(self._items)

    def put(self, key: K, value: V) -> None:
        """Set `key`."""
        if key not in self._items and len(self._items) >= self._max_items:
            del self._items[next(iter(self._items))]
        self._items[key] = value

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()


class Hits:
    """What was lately asked for, as raw bytes, with the answers to it."""

    def __init__(
        self,
        service: FeedService,
        memory: MemoryCache[Held],
        replies: Replies,
        reads: ReadTally,
        clock: Clock,
        *,
        forget_s: float = math.inf,
    ) -> None:
        self._service = service
        self._memory = memory
        self._replies = replies
        self._reads = reads
        self._cells = reads.cells
        self._clock = clock
        self._questions: _Bounded[bytes, FeedKey] = _Bounded(MAX_TARGETS)
        self._terms: _Bounded[bytes, Terms] = _Bounded(MAX_HEADS)
        self._forget_s = forget_s  # after which the ordinary way has to allow a question again
        self._forget_at = clock.steady() + forget_s

    @property
    def remembered(self) -> tuple[int, int]:
        """How many targets and how many heads are remembered."""
        return len(self._questions), len(self._terms)

    def learn(self, target: bytes, key: FeedKey) -> None:
        """Remember that a GET of `target`, in bytes as it was sent, asks for `key`."""
        plain = key.labelers is None and not METHODS[key.nsid].uses_language
        if plain and len(target) <= MAX_HEAD_BYTES:
            self._questions.put(target, key)

    def answer(self, data: bytes, default_headers: Headers) -> tuple[bytes, bytes] | None:
        """Head and body of the answer to `data`, if that is one plain request and a hit.

        `data` is what was received on a connection on which nothing else is under way; `default_headers`
        begin every head.
        """
        line_end = data.find(_VERSION, 0, MAX_HEAD_BYTES)
        if line_end < 0 or not data.startswith(_BEGIN):
            return None
        fields = data[line_end + len(_VERSION) :]
        terms = self._terms.get(fields) or self._read(fields)
        if terms is None:
            return None
        key = self._questions.get(data[4:line_end])
        if key is None:
            return None
        held = self._memory.get(key.digest)
        written = None if held is None else held.written.get(terms)
        if written is None or self._clock.steady() >= written.until:
            written = self._write(key, terms, default_headers)
        if written is None:
            return None
        self._cells[written.cell] += 1
        return written.head, written.body

    def _read(self, fields: bytes) -> Terms | None:
        """The terms of a request whose head has these `fields`; None unless it is plain."""
        if len(fields) > MAX_HEAD_BYTES or _PLAIN.fullmatch(fields) is None:
            return None
        found: dict[bytes, list[str]] = {}
        for match in _FIELD.finditer(fields):
            found.setdefault(match[1].lower(), []).append(match[2].strip(b" \t").decode("ascii"))
        if not found.keys() <= _CHOOSING | _SECRET or len(found.get(b"host", ())) != 1:
            return None
        terms = self._replies.terms(_joined(found.get(b"accept-encoding")), _joined(found.get(b"origin")))
        if found.keys().isdisjoint(_SECRET):
            self._terms.put(fields, terms)
        return terms

    def _write(self, key: FeedKey, terms: Terms, default_headers: Headers) -> Written | None:
        """The answer to `key` as it is until its age is a second more; None if there is none at once.

        Whether a refresh that is under way fails is seen after that second.
        """
        if self._clock.steady() >= self._forget_at:
            self._questions.clear()
            self._forget_at = self._clock.steady() + self._forget_s
            return None
        answer = self._service.at_once(key)
        if answer is None or answer.held is None:
            return None
        held = answer.held
        reply = self._replies.serve(answer, held, key.nsid, terms)
        lines = b"".join(b"%b: %b\r\n" % line for line in (*default_headers, *reply.headers))
        age_s, turns = held.age_s(self._clock.steady()), (held.life.refresh_at_s, held.life.fresh_until_s)
        written = Written(
            until=held.born_at + min([math.floor(age_s) + 1, *(turn for turn in turns if turn > age_s)]),
            head=b"".join((STATUS_LINE[reply.status], lines, b"\r\n")),
            body=reply.body,
            cell=self._reads.cell(key.nsid, answer),
        )
        if len(held.written) >= MAX_WRITTEN:
            held.written.clear()
        held.written[terms] = written
        return written


def _joined(values: list[str] | None) -> str | None:
    return None if values is None else ", ".join(values)

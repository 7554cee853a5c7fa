"""Which request work is done for: W3C trace context, told to the upstream and in every line of the log.

Work that outlives its request (a flight) goes on under the trace of the first who asked.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:  # every command has a log, few have a server
    from starlette.types import ASGIApp, Receive, Scope, Send

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
Kind = Literal["server", "client", "internal"]
Facts = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A place in a trace. `told`: others know of the trace, so that the next server is told of it as well."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16 hexadecimal digits
    flags: str = "00"
    told: bool = False

    @property
    def traceparent(self) -> str:
        """The header that says so (W3C Trace Context)."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current_trace() -> Trace | None:
    """What the present task works for, if that is known."""
    return _current.get()


def with_trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: a line of the log bears the numbers of the trace that it belongs to."""
    trace = _current.get()
    if trace is not None:
        event.setdefault("trace_id", trace.trace_id)
        event.setdefault("request_id", trace.span_id)
    return event


def trace_of(traceparent: str | None) -> Trace | None:
    """What the header says; None if it is absent or not valid."""
    match = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    if not int(match[2], 16) or not int(match[3], 16):
        return None
    # Of a later version nothing but the bit "sampled" is known.
    flags = match[4] if match[1] == "00" else f"{int(match[4], 16) & 1:02x}"
    return Trace(trace_id=match[2], span_id=match[3], flags=flags, told=True)


class Spans(Protocol):
    """What keeps account of the parts of a trace. `kept`: somebody wants to know how long they last."""

    kept: bool

    def part(
        self, name: str, kind: Kind, parent: Trace | None, facts: Facts
    ) -> AbstractContextManager[Trace]:
        """A part named `name` of the trace of `parent`, or of a new one, for as long as the block lasts."""


class ClosableSpans(Spans, Protocol):
    """Spans that belong to a process."""

    def close(self) -> None:
        """The process ends."""


class NoSpans:
    """Nobody keeps account: there are but numbers to know a request by."""

    kept = False

    def part(
        self,
        name: str,  # noqa: ARG002
        kind: Kind,  # noqa: ARG002
        parent: Trace | None,
        facts: Facts,  # noqa: ARG002
    ) -> AbstractContextManager[Trace]:
        """See Spans."""
        number = secrets.token_hex(24)
        if parent is None:
            return nullcontext(Trace(trace_id=number[:32], span_id=number[32:]))
        return nullcontext(replace(parent, span_id=number[32:]))

    def close(self) -> None:
        """See ClosableSpans."""


@contextmanager
def working(spans: Spans, name: str, kind: Kind, parent: Trace | None, **facts: str | int) -> Iterator[Trace]:
    """Work for `parent`: what is logged and asked for in the block bears its numbers."""
    with spans.part(name, kind, parent, facts) as trace:
        before = _current.set(trace)
        try:
            yield trace
        finally:
            _current.reset(before)


def answering(spans: Spans, method: str, path: str, traceparent: str | None) -> AbstractContextManager[Trace]:
    """Work for a request to us, which is part of the trace that it says it belongs to."""
    facts = {"http.request.method": method, "url.path": path[:200]}
    return working(spans, method, "server", trace_of(traceparent), **facts)


class TracedApp:
    """An ASGI application whose requests are parts of the traces that they say they belong to."""

    def __init__(self, app: ASGIApp, spans: Spans) -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"traceparent"]
        traceparent = given[0].decode("latin-1") if len(given) == 1 else None
        with answering(self._spans, scope["method"], scope["path"], traceparent):
            await self._app(scope, receive, send)

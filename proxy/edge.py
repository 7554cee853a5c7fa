"""The listener's limits: how large and slow a request may be, and how many connections there are.

uvicorn accepts heads of any size at any pace, has no timer before a connection's first request, and waits for
ever for a client to read; this is its HTTP protocol with bounds.
"""

from __future__ import annotations

import asyncio
import enum
import json
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from proxy.crowd import ConnectionLimits

MAX_HEAD_BYTES: Final = 16 * 1024
HEAD_S: Final = 10.0
BODY_S: Final = 30.0
# A client that takes nothing of its answers for so long has gone.
SEND_S: Final = 60.0
# Requests that wait for their turn on one connection; what follows them waits unparsed.
MAX_PIPELINED: Final = 8
_SLICE_BYTES: Final = 4096
# After SIGTERM an idle connection may still bring a request that was under way.
LINGER_S: Final = 0.25

Headers = list[tuple[bytes, bytes]]


def response_bytes(status: int, headers: Headers, body: bytes) -> bytes:
    """A response as it is sent."""
    lines = b"".join(b"%b: %b\r\n" % line for line in headers)
    return b"".join((STATUS_LINE[status], lines, b"\r\n", body))


class EdgeConfig(uvicorn.Config):
    """uvicorn's configuration with the limits that EdgeProtocol keeps.

    `any_origin` says whether scripts of any site may read what is said below ASGI.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: ConnectionLimits,
        any_origin: bool,
        http: type[EdgeProtocol] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(app, http=http or EdgeProtocol, **options)
        self.limits = limits
        self.any_origin = any_origin


class Part(enum.Enum):
    """Of a request, what is being received."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class _HeadTooLarge(Exception):
    """The head of a request exceeds MAX_HEAD_BYTES."""


class EdgeProtocol(HttpToolsProtocol):
    """One connection: uvicorn's httptools protocol within the limits of its EdgeConfig."""

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None until the first head is there

    def __init__(
        self,
        config: EdgeConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits
        self._any_origin = config.any_origin
        self._peer: str | None = None
        self._admitted = False
        self._draining = False
        self._deaf = False  # nothing more is parsed
        self._part = Part.IDLE
        self._head_bytes = 0  # of the head's lines that are complete
        self._unparsed_bytes = 0  # received for a head that is not complete yet
        self._completed = False  # whether a message ended in the current read
        self._held_back = b""  # received, and not to be parsed before some answers have gone out
        self._timer: asyncio.TimerHandle | None = None
        self._timed_part: Part | None = None
        self._reading: asyncio.TimerHandle | None = None  # while it is in doubt whether the client reads

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many."""
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else None
        self._admitted = self._limits.admit(self._peer)
        if self._admitted:
            self._watch(Part.HEAD)
        else:
            self._end_with(503, "UpstreamUnavailable", "too many connections", [(b"retry-after", b"1")])

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the connection's place back."""
        self._unset_keepalive_if_required()  # uvicorn leaves it running after a reset
        self._unwatch()
        self._unwatch_reading()
        if self._admitted:
            self._admitted = False
            self._limits.release(self._peer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, as long as not too many requests wait for their answers."""
        if self._held_back:
            self._held_back += data
        else:
            self._feed(data)

    def pause_writing(self) -> None:
        """Answers pile up: see to it that the client reads at all."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """It does."""
        self._unwatch_reading()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Go on with what was held back."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reading()
        held_back, self._held_back = self._held_back, b""
        self._feed(held_back)
        if self.pipeline:
            self.flow.pause_reading()  # uvicorn reads on after each answer, however many are owed

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, which brings nothing more."""
        super().timeout_keep_alive_handler()
        self._watch_reading()

    def _feed(self, data: bytes) -> None:
        while data and self._admitted and not (self._deaf or self.transport.is_closing()):
            if len(self.pipeline) >= MAX_PIPELINED:
                self._held_back = data
                self.flow.pause_reading()
                self._unwatch()  # it is we who keep the client waiting
                return
            self._parse(data[:_SLICE_BYTES])
            data = data[_SLICE_BYTES:]

    def _parse(self, data: bytes) -> None:
        """Parse, and see whether the request keeps within size and time."""
        self._completed = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._part is Part.HEAD:
            # Of a read in which another message ended, who knows how much was of this head.
            self._unparsed_bytes += 0 if self._completed else len(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
                return
        self._watch_progress()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._part = Part.HEAD
        self._head_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header line."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; while draining, its answer is the last on this connection."""
        self._part = Part.BODY
        super().on_headers_complete()
        # Whoever waits for leave to send a body may never send it: what follows could be anything.
        if self.cycle is not None and (self._draining or self.expect_100_continue):
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The body is there as well."""
        self._part, self._completed = Part.IDLE, True
        super().on_message_complete()

    def shutdown(self) -> None:
        """Drain: answer what is under way or just about to arrive, then close."""
        self._draining = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of XRPC errors."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._end_with(400, "InvalidRequest", msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Who asks for another protocol gets HTTP; that is no matter for the log."""

    def _count(self, line_bytes: int) -> None:
        self._head_bytes += line_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge

    def _refuse_head(self) -> None:
        self._end_with(431, "InvalidRequest", f"the request head exceeds {MAX_HEAD_BYTES} bytes")

    def _watch_progress(self) -> None:
        """Time whatever the client owes us; while it waits for us there is no timer."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._part is Part.BODY:
            self._watch(Part.BODY)
        elif self._part is Part.HEAD or not (answering or self.timeout_keep_alive_task):
            self._watch(Part.HEAD)
        else:
            self._unwatch()

    def _watch(self, part: Part) -> None:
        if self._timed_part is part:
            return  # already running: further bytes buy no more time
        self._unwatch()
        self._timed_part = part
        self._timer = self.loop.call_later(HEAD_S if part is Part.HEAD else BODY_S, self._too_slow)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timed_part = None

    def _watch_reading(self) -> None:
        """End the connection when nothing of what was written goes out."""
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes and self._reading is None:
            self._reading = self.loop.call_later(SEND_S, self._reads_nothing, unread_bytes)

    def _unwatch_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _reads_nothing(self, before_bytes: int) -> None:
        self._reading = None
        if self.transport.get_write_buffer_size() >= before_bytes:
            self.transport.abort()
        else:
            self._watch_reading()

    def _too_slow(self) -> None:
        self._timer = self._timed_part = None
        if self._part is Part.IDLE:
            self.transport.close()
        else:
            self._end_with(408, "InvalidRequest", "the request took too long to arrive")

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _close(self) -> None:
        """Close once everything is sent, if the client reads it."""
        self.transport.close()
        self._watch_reading()

    def _end_with(self, status: int, code: str, message: str, more: Headers | None = None) -> None:
        """Answer below ASGI, and close."""
        if self.transport.is_closing():
            return
        if self._owes():
            self._stop_parsing()
            return
        body = json.dumps({"error": code, "message": message}).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *([(b"access-control-allow-origin", b"*")] if self._any_origin else []),
            (b"connection", b"close"),
            *(more or ()),
        ]
        self.transport.write(response_bytes(status, headers, body))
        self._close()

    def _owes(self) -> bool:
        """Whether an answer given now would be taken for that of another request."""
        if self.cycle is None:
            return False
        if self._part is Part.BODY:  # the request that is being parsed is the last cycle
            return bool(self.pipeline) or self.cycle.response_started
        return not self.cycle.response_complete

    def _stop_parsing(self) -> None:
        """Answer what has been asked, then close."""
        self._deaf = True
        self._unwatch()
        self.flow.pause_reading()
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

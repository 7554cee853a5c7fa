"""The short cut: plain requests are answered below ASGI, at once or in time, without being parsed.

It is taken only on a connection on which nothing else is under way; what follows waits for the answer.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from proxy.edge import EdgeConfig, EdgeProtocol, Headers, Part
from proxy.telemetry import get_logger

_log = get_logger()


class Reply(Protocol):
    """An answer."""

    def as_sent(self, default_headers: Headers, *, last: bool) -> bytes: ...  # noqa: D102


# Takes an answer, or what will find it.
Deliver = Callable[[Reply | Coroutine[Any, Any, Reply]], None]
# Has an answer delivered; the result, if any, calls that off.
Later = Callable[[Deliver], Callable[[], None] | None]
# The answer to what was received, whole or in time; None if that is not one plain request. The other
# arguments are the peer's address and the headers that begin every head.
ShortCut = Callable[[bytes, str | None, Headers], bytes | Later | None]


class ShortCutConfig(EdgeConfig):
    """An EdgeConfig with a short cut to some answers."""

    def __init__(self, app: Any, *, short_cut: ShortCut, **options: Any) -> None:
        super().__init__(app, http=ShortCutProtocol, **options)
        self.short_cut = short_cut


class ShortCutProtocol(EdgeProtocol):
    """One connection: the protocol of the edge, and the short cut of its ShortCutConfig."""

    def __init__(
        self,
        config: ShortCutConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._short_cut: ShortCut | None = config.short_cut
        self._heard_at = 0.0  # by the loop's clock, the last request that took the short cut
        self._call_off: Callable[[], None] | None = None  # while an answer is waited for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Whose connection is refused gets no answers."""
        super().connection_made(transport)
        if not self._admitted:
            self._short_cut = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever has left takes up no room among those who wait."""
        if self._call_off is not None:
            self._call_off()
            self._call_off = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the short cut, or leave it to the parser."""
        cycle = self.cycle
        if (
            self._short_cut is None
            or self._part is not Part.IDLE
            or (cycle is not None and not (cycle.response_complete and cycle.keep_alive))
            or self.flow.write_paused
        ):
            super().data_received(data)
            return
        answer = self._short_cut(data, self._peer, self.server_state.default_headers)
        if answer is None:
            super().data_received(data)
        elif isinstance(answer, bytes):
            self.transport.write(answer)
            self._answered()
        else:
            self._answer_in_time(answer)

    def on_headers_complete(self) -> None:
        """After an upgrade, who knows what the parser takes the rest for."""
        if self.parser.should_upgrade():
            self._short_cut = None
        super().on_headers_complete()

    def shutdown(self) -> None:
        """Drain: the ordinary way knows how to part."""
        self._short_cut = None
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless it is in use: the short cut does not set the timer anew each time."""
        in_use = self.cycle is not None and not self.cycle.response_complete
        heard_at = self.loop.time() if in_use else self._heard_at
        left_s = heard_at + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _answered(self) -> None:
        """Until the next request, the client has time."""
        self.server_state.total_requests += 1
        self._heard_at = self.loop.time()
        if self._timer is not None:
            self._unwatch()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _answer_in_time(self, later: Later) -> None:
        """It is the client who waits.

        For what comes meanwhile this is a request like any other: it has a cycle, which says whether the
        connection ends with it.
        """
        self._unwatch()
        cycle = self.cycle = RequestResponseCycle(
            scope={"method": "GET"},  # type: ignore[typeddict-item]  # the rest is for an application
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        self._call_off = later(functools.partial(self._deliver, cycle))

    def _deliver(self, cycle: RequestResponseCycle, found: Reply | Coroutine[Any, Any, Reply]) -> None:
        self._call_off = None
        if isinstance(found, Coroutine):
            task = self.loop.create_task(self._find(cycle, found))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif not self.transport.is_closing():
            self._found(cycle, found)

    async def _find(self, cycle: RequestResponseCycle, finding: Coroutine[Any, Any, Reply]) -> None:
        """For a task of this server."""
        try:
            reply = await finding
        except Exception:  # noqa: BLE001  (the last resort: a bug must not leave a client hanging)
            _log.error("request_crashed", exc_info=True)
            await cycle.send_500_response()
            return
        self._deliver(cycle, reply)

    def _found(self, cycle: RequestResponseCycle, reply: Reply) -> None:
        """Send the answer in one piece, and go on with what has come meanwhile."""
        self.transport.write(reply.as_sent(self.server_state.default_headers, last=not cycle.keep_alive))
        cycle.response_started = cycle.response_complete = True
        if cycle.keep_alive and self._part is Part.IDLE and not self.pipeline:
            self._answered()
            return
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

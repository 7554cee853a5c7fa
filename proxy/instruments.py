"""What a process observes itself with: what it counts, and whose trace its work belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import httpx

from proxy.clock import Clock
from proxy.tally import OTHER, Tally
from proxy.tracing import Spans, current_trace

STATUSES: Final = (
    *(str(status) for status in (200, 304, 400, 401, 403, 404, 408, 410, 429, 500, 502, 503, 504)),
    "timeout",
    "broken",  # the connection failed
    OTHER,
)


@dataclass(frozen=True, slots=True)
class Instruments:
    """A process's own."""

    tally: Tally
    spans: Spans
    clock: Clock

    def transport(self, inner: httpx.AsyncBaseTransport, name: str) -> httpx.AsyncBaseTransport:
        """`inner`, its requests counted as `name`_requests and timed as `name`_request_seconds.

        They carry the trace that they belong to, if others know of it.
        """
        return _ObservedTransport(inner, self, name)


class _ObservedTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, instruments: Instruments, name: str) -> None:
        self._inner = inner
        self._instruments = instruments
        self._name = name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        tally, clock = self._instruments.tally, self._instruments.clock
        facts = {"http.request.method": request.method, "server.address": request.url.host}
        sent_at, status = clock.steady(), "broken"
        try:
            with self._instruments.spans.part(request.method, "client", current_trace(), facts) as trace:
                if trace.told:
                    request.headers["traceparent"] = trace.traceparent
                response = await self._inner.handle_async_request(request)
                status = str(response.status_code)
                return response
        except httpx.TimeoutException:
            status = "timeout"
            raise
        finally:
            tally.add(f"{self._name}_requests", status)
            tally.observe(f"{self._name}_request_seconds", clock.steady() - sent_at)

    async def aclose(self) -> None:
        await self._inner.aclose()

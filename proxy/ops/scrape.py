"""The HTTP edge of /metrics."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.errors import Rejected
from proxy.ops.door import Door, refusal_response
from proxy.ops.report import Report
from proxy.ops.reporter import Reporter

_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Scrape:
    """Answers Prometheus. For strangers there is no such page."""

    def __init__(self, reporter: Reporter, door: Door) -> None:
        self._reporter = reporter
        self._door = door

    def routes(self) -> list[Route]:
        """The route."""
        return [Route("/metrics", self._metrics, methods=["GET"])]

    async def _metrics(self, request: Request) -> Response:
        try:
            if not self._door.admits(request):
                raise HTTPException(404)
        except Rejected as error:
            return refusal_response(error)
        report = await self._reporter.report()
        body, media_type = await asyncio.to_thread(_written, report, request.headers.get("accept", ""))
        return Response(body, headers={**_HEADERS, "Content-Type": media_type})


def _written(report: Report, accept: str) -> tuple[bytes, str]:
    # The import takes 0.1 s, which neither the start nor the event loop has.
    from proxy.ops.metrics import exposition  # noqa: PLC0415

    return exposition(report, accept)

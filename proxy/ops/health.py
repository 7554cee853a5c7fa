"""The probes: does the loop turn, is the listener up, and what is wrong (application/health+json).

Source: draft-inadarei-api-health-check; each finding says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proxy.errors import Rejected
from proxy.ops.door import Door, refusal_response
from proxy.ops.findings import Finding, findings_of, worst
from proxy.ops.report import Report
from proxy.ops.reporter import Reporter
from proxy.version import VERSION

_NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Health:
    """Answers the probes. `ready` says whether this host takes requests."""

    def __init__(self, ready: Callable[[], bool], reporter: Reporter, door: Door) -> None:
        self._ready = ready
        self._reporter = reporter
        self._door = door

    def routes(self) -> list[Route]:
        """The probes' routes."""
        return [
            Route("/livez", self._livez, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
        ]

    async def _livez(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n", headers=_NO_STORE)

    async def _readyz(self, _request: Request) -> Response:
        if self._ready():
            return PlainTextResponse("ready\n", headers=_NO_STORE)
        return PlainTextResponse("not ready\n", status_code=503, headers=_NO_STORE)

    async def _health(self, request: Request) -> Response:
        try:
            in_full = self._door.admits(request)
        except Rejected as error:
            return refusal_response(error)
        report = await self._reporter.report()
        findings = findings_of(report)
        status = worst(findings)
        # Strangers learn whether all is well, and nothing of how this is built.
        document: dict[str, object] = {"status": status}
        if in_full:
            document |= {"version": VERSION, "checks": _checks(report, findings)}
        return JSONResponse(
            document,
            status_code=503 if status == "fail" else 200,
            headers=_NO_STORE,
            media_type="application/health+json",
        )


def _checks(report: Report, findings: Sequence[Finding]) -> dict[str, list[dict[str, object]]]:
    at = datetime.fromtimestamp(report.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {finding.part: [_check(finding, at)] for finding in findings}


def _check(finding: Finding, at: str) -> dict[str, object]:
    check: dict[str, object] = {"status": finding.status, "time": at}
    if finding.output:
        check["output"] = finding.output
    if finding.observed is not None:
        check |= {"observedValue": round(finding.observed, 3), "observedUnit": finding.unit}
    return check

"""The probes: does the loop turn, is the listener up, and what is wrong (application/health+json).

Source: draft-inadarei-api-health-check; each finding says what to do.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proxy.version import VERSION

_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one part, and for a person what is wrong with it and what to do."""

    part: str
    status: Literal["pass", "warn", "fail"]
    output: str = ""


class Health:
    """Answers the probes. `ready` says whether this host takes requests, `findings` inspects the parts."""

    def __init__(self, ready: Callable[[], bool], findings: Callable[[], Iterable[Finding]]) -> None:
        self._ready = ready
        self._findings = findings

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
        findings = list(self._findings())
        statuses = {finding.status for finding in findings}
        status = next((worst for worst in ("fail", "warn") if worst in statuses), "pass")
        document: dict[str, object] = {"status": status}
        # Strangers learn whether all is well, and nothing of how this is built.
        if _is_local(request):
            document["version"] = VERSION
            document["checks"] = {
                finding.part: [
                    {"status": finding.status, **({"output": finding.output} if finding.output else {})}
                ]
                for finding in findings
            }
        return JSONResponse(
            document,
            status_code=503 if status == "fail" else 200,
            headers=_NO_STORE,
            media_type="application/health+json",
        )


def _is_local(request: Request) -> bool:
    """Whether the peer is of this host or a private network, and no proxy speaks for another."""
    if request.client is None:
        return True
    if "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        address = ipaddress.ip_address(request.client.host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_private

"""Who may see how this is run: this host, private networks, and whoever has the operator's token."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from proxy.admin import client_name
from proxy.clients import Trust, address_of, is_own
from proxy.errors import Rejected
from proxy.resilience.admin_token import AdminToken

# A proxy that says so speaks for another, who may be anybody.
_SPOKEN_FOR: Final = ("x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "via")


class Door:
    """What stands before health in full, metrics and the dashboard.

    `is_private` is for a listener that the operator keeps for them (OPS_LISTEN): whoever reaches it is let
    in. `is_moved`: they are there, and not here. `public_url` is how the world reaches us, if it does.
    """

    def __init__(
        self,
        token: AdminToken,
        trust: Trust,
        *,
        public_url: str | None = None,
        is_private: bool = False,
        is_moved: bool = False,
    ) -> None:
        self._token = token
        self._trust = trust
        self._public_host = None if public_url is None else urlsplit(public_url).hostname
        self._is_private = is_private
        self._is_moved = is_moved

    def admits(self, request: Request) -> bool:
        """Whether whoever asks may see everything. Raises Rejected for a wrong token (401, 429)."""
        if self._is_moved:
            return False
        if self._is_private or (_is_own_peer(request) and self._is_our_name(request)):
            return True
        shown = request.headers.get("authorization")
        if shown is None or not self._token.is_set:
            return False
        self._token.check(client_name(request, self._trust), shown)
        return True

    def _is_our_name(self, request: Request) -> bool:
        """Whether it asks for us by a name that nobody else can have lead here.

        A page in an operator's browser may have its own name lead to this host, and would read what we answer
        to the browser. It can do that with no address, nor with a name without a dot, as has localhost, or a
        service in a composition.
        """
        host = _host_in(request.headers.get("host", ""))
        return "." not in host or host == self._public_host or address_of(host) is not None


def refusal_response(error: Rejected) -> Response:
    """What is said to a token that is wrong."""
    return JSONResponse(
        {"error": error.code, "message": error.message},
        status_code=error.status,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **dict(error.headers)},
    )


def _host_in(header: str) -> str:
    """The host of a Host header, without its port and the root's dot."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_own_peer(request: Request) -> bool:
    """Whether the peer is of this host or a private network, and no proxy speaks for another."""
    if any(name in request.headers for name in _SPOKEN_FOR):
        return False
    if request.client is None:
        return True
    address = address_of(request.client.host)
    return address is not None and is_own(address)

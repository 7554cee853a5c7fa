"""Who is logged in to the dashboard: the admin token is shown once, a signed cookie stands for it afterwards.

The cookie carries nothing but its end and a random number, under a key that follows from the token: all
processes of a fleet know it without asking each other, and a new token ends all sessions.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from proxy.admin import client_name
from proxy.clients import Trust
from proxy.clock import Clock
from proxy.errors import Rejected
from proxy.resilience.admin_token import AdminToken

COOKIE: Final = "feedproxy_ops"
SESSION_S: Final = 12 * 3600.0
PATH: Final = "/ops"
MAX_FORM_BYTES: Final = 4096

_FORM: Final = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{22})\.([0-9a-f]{64})")
_READS: Final = frozenset(("GET", "HEAD"))


class Login:
    """Sessions of operators who have shown `token`. `public_url` is how the world reaches us, if known."""

    def __init__(self, token: AdminToken, trust: Trust, clock: Clock, *, public_url: str | None) -> None:
        self._token = token
        self._trust = trust
        self._clock = clock
        self._public_url = public_url
        self._key = token.key("feedproxy dashboard session 1")

    def ends_at(self, request: Request) -> float | None:
        """When the session of `request` ends, in seconds since 1970; None if it has none."""
        match = _FORM.fullmatch(request.cookies.get(COOKIE, ""))
        if match is None:
            return None
        said = f"{match[1]}.{match[2]}"
        ends_at = int(match[1])
        # What is valid for longer than any session was made by a clock that ran ahead.
        is_alive = 0 < ends_at - self._clock.wall() <= SESSION_S + 1
        return ends_at if hmac.compare_digest(self._signature(said), match[3]) and is_alive else None

    def check(self, request: Request) -> None:
        """See that `request` belongs to a session, and that a write comes from a page of ours.

        Raises Rejected: 401, 403.
        """
        if self.ends_at(request) is None:
            raise Rejected(401, "AuthenticationRequired", "log in at /ops/login")
        if request.method not in _READS:
            self.check_origin(request)

    def check_origin(self, request: Request) -> None:
        """See that the page which sends `request` is ours. Raises Rejected, 403."""
        origin = request.headers.get("origin", "").lower()
        host = request.headers.get("host", "").lower()
        if not origin or origin not in (f"https://{host}", f"http://{host}", self._public_url):
            raise Rejected(403, "Forbidden", "this was not sent by a page of the dashboard")

    async def open(self, request: Request, response: Response) -> None:
        """Have `response` begin a session, if the form in `request` carries the token.

        Raises Rejected: 401 and 429 as AdminToken.check, 403 as check_origin, 413.
        """
        self.check_origin(request)
        given = (await _form_of(request)).get("token", [""])[0]
        self._token.check(client_name(request, self._trust), f"Bearer {given}")
        said = f"{self._clock.wall() + SESSION_S:.0f}.{secrets.token_urlsafe(16)}"
        self._set(request, response, f"{said}.{self._signature(said)}", round(SESSION_S))

    def close(self, request: Request, response: Response) -> None:
        """Have `response` end the session in this browser. Raises Rejected as check_origin."""
        self.check_origin(request)
        self._set(request, response, "", 0)

    def _set(self, request: Request, response: Response, value: str, max_age_s: int) -> None:
        is_encrypted = request.headers.get("origin", "").lower().startswith("https:")
        response.set_cookie(
            COOKIE,
            value,
            max_age=max_age_s,
            path=PATH,
            httponly=True,
            samesite="strict",
            secure=is_encrypted,
        )

    def _signature(self, said: str) -> str:
        return hmac.digest(self._key, said.encode(), "sha256").hex()


async def _form_of(request: Request) -> dict[str, list[str]]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise Rejected(413, "PayloadTooLarge", "the form is too large")
    return parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)

"""The HTTP edge of the dashboard: login, the page and its files, the event stream, and what may be done."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from proxy.errors import Rejected
from proxy.ops.dashboard.login import PATH, Login
from proxy.ops.dashboard.stream import Streams
from proxy.ops.door import Door, refusal_response

_HERE: Final = Path(__file__).parent
_LOGIN: Final = f"{PATH}/login"
_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    # With no-referrer, browsers would not say which page a form comes from.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_SEEN: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


class Dashboard:
    """Everything under /ops for those who have logged in. `actions` are the routes of what may be done."""

    def __init__(self, login: Login, streams: Streams, actions: Sequence[Route]) -> None:
        self._login = login
        self._streams = streams
        self._actions = actions
        self._pages = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._files = {path.name: path.read_bytes() for path in (_HERE / "static").iterdir()}

    def routes(self, door: Door) -> list[Route]:
        """The routes. Those whom `door` does not admit learn of /ops only once they have logged in."""

        async def page(request: Request) -> Response:
            if self._login.ends_at(request) is not None:
                return self._page("dashboard.html")
            if not door.admits(request):
                raise HTTPException(404)
            return RedirectResponse(_LOGIN, 303, _HEADERS)

        return [
            Route(PATH, _refusing(page), methods=["GET"]),
            Route(f"{PATH}/", _refusing(page), methods=["GET"]),
            Route(_LOGIN, self._form, methods=["GET"]),
            Route(_LOGIN, self._open, methods=["POST"]),
            Route(f"{PATH}/logout", _refusing(self._close), methods=["POST"]),
            Route(f"{PATH}/events", _refusing(self._events), methods=["GET"]),
            Route(f"{PATH}/static/{{name}}", self._file, methods=["GET"]),
            *self._actions,
        ]

    async def _form(self, request: Request) -> Response:
        if self._login.ends_at(request) is not None:
            return RedirectResponse(PATH, 303, _HEADERS)
        return self._page("login.html", trouble="")

    async def _open(self, request: Request) -> Response:
        response = RedirectResponse(PATH, 303, _HEADERS)
        try:
            await self._login.open(request, response)
        except Rejected as error:
            told = {name: value for name, value in error.headers if name == "Retry-After"}
            return self._page("login.html", error.status, told, trouble=_trouble(error))
        return response

    async def _close(self, request: Request) -> Response:
        response = RedirectResponse(_LOGIN, 303, _HEADERS)
        self._login.close(request, response)
        return response

    async def _events(self, request: Request) -> ASGIApp:
        self._login.check(request)
        seen = request.headers.get("last-event-id", "")
        seen_at = float(seen) if _SEEN.fullmatch(seen) else 0.0
        return self._streams.stream(until=self._login.ends_at(request) or 0.0, seen_at=seen_at)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        content = self._files.get(name)
        if content is None:
            raise HTTPException(404)
        etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
        headers = {"Cache-Control": "no-cache", "ETag": etag, "X-Content-Type-Options": "nosniff"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=_TYPES[Path(name).suffix])

    def _page(
        self, name: str, status: int = 200, headers: Mapping[str, str] | None = None, **variables: object
    ) -> Response:
        text = self._pages.get_template(name).render(**variables)
        return HTMLResponse(text, status, {**_HEADERS, **(headers or {})})


class NoDashboard:
    """What stands in its place while there is no admin token."""

    def routes(self, door: Door) -> list[Route]:
        """A page that tells operators, and nobody else, what is missing."""

        async def page(request: Request) -> Response:
            if not door.admits(request):
                raise HTTPException(404)
            return PlainTextResponse(
                "To use the dashboard, set FEEDPROXY_ADMIN_TOKEN (at least 32 characters) and restart.\n",
                404,
                {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
            )

        return [Route(PATH, _refusing(page), methods=["GET"])]


def _refusing(handler: Callable[[Request], Awaitable[ASGIApp]]) -> Callable[[Request], Awaitable[ASGIApp]]:
    """`handler`, whose refusals become answers."""

    async def answer(request: Request) -> ASGIApp:
        try:
            return await handler(request)
        except Rejected as error:
            return refusal_response(error)

    return answer


def _trouble(error: Rejected) -> str:
    match error.status:
        case 401:
            return "This is not the admin token."
        case 429:
            return "Too many wrong tokens came from your address. Wait a little."
        case 403:
            return "Your browser did not say that this form is ours. Open the page by its own address."
        case _:
            return "This is too long for a token."

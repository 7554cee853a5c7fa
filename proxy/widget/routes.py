"""The HTTP edge of the widget: its script, the pages that show feeds, and the page for newcomers."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from proxy.widget.assets import IMMUTABLE, NOT_KEPT, SHORT_LIVED, Asset
from proxy.widget.embed import EmbedRoute
from proxy.widget.pages import Pages
from proxy.widget.script import HERE, current_script, released_scripts

_JAVASCRIPT: Final = "text/javascript; charset=utf-8"
_CSS: Final = "text/css; charset=utf-8"
_EXAMPLE: Final = "bsky.app"


class WidgetRoutes:
    """Everything of the widget before `feeds`, the application under /xrpc.

    `public_url` is how the world reaches us, if that is known. `plain_pictures`: whether pictures may come
    over http. `any_origin`: whether scripts of all sites may ask. `example` is what newcomers are shown: an
    account, or the at:// address of a feed.
    """

    def __init__(
        self,
        feeds: ASGIApp,
        *,
        public_url: str | None,
        plain_pictures: bool,
        any_origin: bool,
        example: str | None,
    ) -> None:
        self._script = current_script()
        self._public_url = public_url
        self._plain_pictures = plain_pictures
        self._example = example or _EXAMPLE
        released = released_scripts()
        self._scripts = {digest: Asset(script.content, _JAVASCRIPT) for digest, script in released.items()}
        self._styles = {digest: Asset(script.style.encode(), _CSS) for digest, script in released.items()}
        static = HERE / "static"
        self._home_script = Asset((static / "home.js").read_bytes(), _JAVASCRIPT)
        self._home_style = Asset((static / "home.css").read_bytes(), _CSS)
        self._pages = Pages(self._script)
        self._embed = EmbedRoute(
            feeds,
            self._pages,
            public_url=public_url,
            style_path=f"/widget-{self._script.hash}.css",
            plain_pictures=plain_pictures,
            any_origin=any_origin,
        )

    def routes(self) -> list[BaseRoute]:
        """The routes, none of which lies under /xrpc."""
        methods = ["GET", "HEAD"]
        return [
            Route("/", self._home, methods=methods),
            Route("/home.js", self._home_js, methods=methods),
            Route("/home.css", self._home_css, methods=methods),
            Route("/widget.js", self._current, methods=methods),
            Route("/widget-{digest}.{kind}", self._pinned, methods=methods),
            Route("/embed/{actor}", self._embed, methods=methods),
            Route("/embed/{actor}/", self._embed, methods=methods),
        ]

    async def _current(self, request: Request) -> Response:
        return await self._scripts[self._script.hash].response(request, SHORT_LIVED)

    async def _pinned(self, request: Request) -> Response:
        files = {"js": self._scripts, "css": self._styles}.get(request.path_params["kind"])
        if files is None:
            return Response(status_code=404, headers={"cache-control": NOT_KEPT})
        asset = files.get(request.path_params["digest"])
        if asset is not None:
            return await asset.response(request, IMMUTABLE)
        # A page of a newer host, in the middle of an upgrade: ours serves it better than none.
        return await files[self._script.hash].response(request, NOT_KEPT)

    async def _home(self, request: Request) -> Response:
        base = self._public_url or f"{request.url.scheme}://{request.url.netloc}"
        page = self._pages.home(
            base=base,
            public_url=self._public_url or "",
            example=request.query_params.get("actor") or self._example,
            hash=self._script.hash,
            integrity=self._script.integrity,
        )
        pictures = "https: http: data:" if self._plain_pictures else "https: data:"
        policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {pictures}; "
            "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        return HTMLResponse(
            page,
            headers={
                "cache-control": "no-cache",
                "content-security-policy": policy,
                "referrer-policy": "no-referrer",
                "x-content-type-options": "nosniff",
            },
        )

    async def _home_js(self, request: Request) -> Response:
        return await self._home_script.response(request, SHORT_LIVED)

    async def _home_css(self, request: Request) -> Response:
        return await self._home_style.response(request, SHORT_LIVED)

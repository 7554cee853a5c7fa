"""GET /embed/{actor}: a feed as a document or a fragment, with the headers of the feed it is made of."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.feeds.entry import compressed
from proxy.feeds.headers import accepted_coding, etag_matches
from proxy.feeds.memory import MemoryCache
from proxy.widget.inner import InnerAnswer, ask
from proxy.widget.pages import Pages, Wish, wish_of

_ROOM_BYTES: Final = 8 * 1024 * 1024
# What the page has of its own; everything else is as the feed has it.
_REPLACED: Final = frozenset({"etag", "content-type", "content-length", "content-encoding"})
_ETAG = re.compile(r'"([^"-]+)')
_STALE = "detail=stale-if-error"


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A page's HTML in every coding that is worth it, and its hash."""

    bodies: Mapping[str, bytes]
    hash: str  # empty: nobody need ask whether it has changed

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.bodies.values()))


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Everything that a page depends on, besides the feed's content."""

    wish: Wish
    style_href: str | None  # of a fragment; None: a document
    key: str | None
    updated_at: datetime | None
    stale: bool


class EmbedRoute:
    """The ASGI application of /embed/{actor}, before `feeds`, the one of /xrpc.

    `style_path` is that of the style sheet of fragments. `plain_pictures`: whether pictures may come over
    http. `any_origin`: whether scripts of all sites may ask, and so that of a sandboxed document, which has
    no origin.
    """

    def __init__(
        self,
        feeds: ASGIApp,
        pages: Pages,
        *,
        public_url: str | None,
        style_path: str,
        plain_pictures: bool,
        any_origin: bool,
    ) -> None:
        self._feeds = feeds
        self._pages = pages
        self._public_url = public_url
        self._style_path = style_path
        self._any_origin = any_origin
        self._policy = _policy(pages.style_hashes, plain_pictures=plain_pictures)
        self._rendered: MemoryCache[_Rendered] = MemoryCache(_ROOM_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope)
        wish = wish_of(request.path_params["actor"], request.query_params, self._pages.languages)
        nsid, parameters = wish.question
        answer = await ask(self._feeds, scope, receive, nsid, parameters)
        fragment = request.query_params.get("fragment", "") not in ("", "0", "false")
        recipe = _recipe(wish, answer, self._style_href(request) if fragment else None)
        rendered = await self._render(recipe, answer)
        await self._response(request, answer, rendered)(scope, receive, send)

    def _style_href(self, request: Request) -> str:
        """Without PUBLIC_URL the page that takes a fragment decides between http and https."""
        return f"{self._public_url or f'//{request.url.netloc}'}{self._style_path}"

    async def _render(self, recipe: _Recipe, answer: InnerAnswer) -> _Rendered:
        if recipe.key is None:
            # Anybody may ask for nobody, each time by another name: what is neither compressed nor kept costs
            # less than what is.
            return _Rendered({"identity": self._html(recipe, None).encode()}, hash="")
        name = repr(recipe)
        rendered = self._rendered.get(name)
        if rendered is None:
            # Some milliseconds for a long feed: not for the loop.
            rendered = await asyncio.to_thread(self._made, recipe, answer)
            self._rendered.put(name, rendered, rendered.size_bytes)
        return rendered

    def _made(self, recipe: _Recipe, answer: InnerAnswer) -> _Rendered:
        return _Rendered(*compressed(self._html(recipe, json.loads(answer.body)).encode()))

    def _html(self, recipe: _Recipe, document: object) -> str:
        """The page of the AppView's answer; of none (None) a friendly line and a link."""
        page = self._pages.page(
            recipe.wish,
            document,
            key=recipe.key,
            updated_at=recipe.updated_at,
            stale=recipe.stale,
            still=recipe.style_href is None and not self._any_origin,
        )
        if recipe.style_href is None:
            return self._pages.document(page)
        return self._pages.fragment(page, recipe.style_href)

    def _response(self, request: Request, answer: InnerAnswer, rendered: _Rendered) -> Response:
        coding = accepted_coding(request.headers.get("accept-encoding"), rendered.bodies)
        etag = f'"{rendered.hash}"' if coding == "identity" else f'"{rendered.hash}-{coding}"'
        headers = {name: value for name, value in answer.headers.items() if name not in _REPLACED}
        if rendered.hash:
            headers["etag"] = etag
        headers |= {
            "content-security-policy": self._policy,
            "cross-origin-embedder-policy": "credentialless",  # so that isolated pages may frame it
            "cross-origin-resource-policy": "cross-origin",
            "referrer-policy": "no-referrer",
        }
        if answer.status == 200 and etag_matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        if coding != "identity":
            headers["content-encoding"] = coding
        headers["content-type"] = "text/html; charset=utf-8"
        body = rendered.bodies[coding]
        headers["content-length"] = str(len(body))
        return Response(b"" if request.method == "HEAD" else body, answer.status, headers)


def _recipe(wish: Wish, answer: InnerAnswer, style_href: str | None) -> _Recipe:
    recipe = _Recipe(wish, style_href, None, None, stale=False)
    tag = _ETAG.match(answer.headers.get("etag", ""))
    if answer.status != 200 or tag is None:
        return recipe
    updated_at = datetime.fromisoformat(answer.headers["feed-updated-at"])
    return replace(
        recipe,
        key=tag[1],
        updated_at=updated_at.replace(second=0),  # so that a page is the same for a while, and on every host
        stale=_STALE in answer.headers.get("cache-status", ""),
    )


def _policy(style_hashes: str, *, plain_pictures: bool) -> str:
    """A document that can show pictures and go on with its own feed, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"img-src https:{' http:' if plain_pictures else ''}",
            f"style-src 'self' {style_hashes}",
            "script-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors *",
            "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox",
        )
    )

"""What a post is published with, found out: its page's card, its pictures, within bounds.

Nothing here costs a post: what cannot be had is left out, and said.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from email.message import Message
from typing import Final, TypeVar

from proxy.clock import Clock
from proxy.errors import OutsideError, OutsideFailed, OutsideRefused
from proxy.syndication.card import Card
from proxy.syndication.enrichment import MAX_PICTURES, Enrichment, enrichment_of
from proxy.syndication.foreign import ForeignReader, Picture
from proxy.syndication.outside import Outside, Wanted
from proxy.syndication.post import Post
from proxy.telemetry import get_logger
from proxy.tenants import Site

_ATTEMPT_S: Final = 6.0
_ATTEMPTS: Final = 2
_PAUSE_S: Final = 0.5

_MAX_PAGE_BYTES: Final = 1024 * 1024
_MAX_PICTURE_BYTES: Final = 15 * 1024 * 1024
_PAGE: Final = Wanted(kinds=("text/html", "application/xhtml+xml"), most_bytes=_MAX_PAGE_BYTES, cut=True)
# Some servers know no types.
_PICTURE: Final = Wanted(
    kinds=("image/", "application/octet-stream", "binary/octet-stream"), most_bytes=_MAX_PICTURE_BYTES
)
# The longer side, in pixels: pictures as clients send them; a card's is shown small.
PICTURE_EDGE: Final = 2000
THUMB_EDGE: Final = 1200

_CACHE_BYTES: Final = 32 * 1024 * 1024
_CACHED_S: Final = 600.0

T = TypeVar("T")

_log = get_logger()


class Enricher:
    """Reads pages and pictures that posts name, for the sites they are of."""

    def __init__(self, outside: Outside, reader: ForeignReader, clock: Clock) -> None:
        self._outside = outside
        self._reader = reader
        self._clock = clock
        self._pictures = _Pictures(clock)

    async def enrich(self, post: Post, site: Site, deadline_at: float) -> Enrichment:
        """What `post` is published with, as far as it was found out by the steady instant `deadline_at`.

        The bytes of its pictures are then at hand, see `picture`. Each request is tried twice, within the
        deadline. May be canceled.
        """
        wanted = post.images[:MAX_PICTURES]
        degraded: list[str] = []
        if left_out := len(post.images) - len(wanted):
            degraded.append(f"{left_out} of the pictures {'was' if left_out == 1 else 'were'} left out")
        got = await asyncio.gather(
            *(self._has(site, image.url, PICTURE_EDGE, deadline_at) for image in wanted)
        )
        degraded += [f"picture {place + 1}: {reason}" for place, reason in enumerate(got) if reason]
        shown = tuple(place for place, reason in enumerate(got) if not reason)
        if shown:
            return enrichment_of(post, shown=shown, degraded=tuple(degraded))
        card, trouble = await self._card(post, site, deadline_at)
        degraded += trouble
        if card.picture and (reason := await self._has(site, card.picture, THUMB_EDGE, deadline_at)):
            degraded.append(f"the card's picture: {reason}")
            card = Card(title=card.title, description=card.description)
        for reason in degraded:
            _log.info("post_degraded", site=site.name, post=post.id, reason=reason)
        return enrichment_of(post, card, degraded=tuple(degraded))

    async def picture(self, site: Site, url: str, *, edge: int, deadline_at: float) -> Picture:
        """The picture at `url` as a record may have it: at hand, or fetched (again). Raises OutsideError."""
        key = (site.name, url, edge)
        if (known := self._pictures.get(key)) is not None:
            return known

        async def attempt(until: float) -> Picture:
            answer = await self._outside.get(url, _PICTURE, deadline=until, hosts=site.hosts)
            return await self._reader.picture(answer.body, edge=edge, deadline=deadline_at)

        picture = await self._tried(attempt, deadline_at)
        self._pictures.put(key, picture)
        return picture

    async def _has(self, site: Site, url: str, edge: int, deadline_at: float) -> str:
        """Why there is no picture at `url`; empty if there is."""
        try:
            await self.picture(site, url, edge=edge, deadline_at=deadline_at)
        except OutsideError as error:
            return str(error)
        return ""

    async def _card(self, post: Post, site: Site, deadline_at: float) -> tuple[Card, list[str]]:
        whole = True

        async def attempt(until: float) -> Card:
            nonlocal whole
            answer = await self._outside.get(post.url, _PAGE, deadline=until, hosts=site.hosts)
            whole = answer.whole
            charset = _charset(answer.headers.get("content-type", ""))
            return await self._reader.card(answer.body, url=answer.url, charset=charset, deadline=deadline_at)

        try:
            card = await self._tried(attempt, deadline_at)
        except OutsideError as error:
            return Card(), [f"the page: {error}"]
        return card, [] if whole else ["the page is too large: only its beginning was read"]

    async def _tried(self, attempt: Callable[[float], Awaitable[T]], deadline_at: float) -> T:
        """What `attempt` gives, tried twice if that may help. It is told until when it may fetch."""
        for left in reversed(range(_ATTEMPTS)):
            now = self._clock.steady()
            if now >= deadline_at:
                raise OutsideRefused("there was no time left")
            try:
                return await attempt(min(now + _ATTEMPT_S, deadline_at))
            except OutsideFailed as error:
                rest_s = deadline_at - self._clock.steady()
                if not left or max(error.retry_after_s or 0.0, _PAUSE_S) >= rest_s:
                    raise
                await asyncio.sleep(max(error.retry_after_s or 0.0, _PAUSE_S))
        raise AssertionError("unreachable")


class _Pictures:
    """Pictures at hand, by site (what one may fetch is not for another), URL and size; the newest of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: OrderedDict[tuple[str, str, int], tuple[Picture, float]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, str, int]) -> Picture | None:
        held = self._held.get(key)
        return held[0] if held and self._clock.steady() < held[1] else None

    def put(self, key: tuple[str, str, int], picture: Picture) -> None:
        if (former := self._held.pop(key, None)) is not None:
            self._bytes -= len(former[0].content)
        self._held[key] = (picture, self._clock.steady() + _CACHED_S)
        self._bytes += len(picture.content)
        while self._bytes > _CACHE_BYTES:
            _, (oldest, _) = self._held.popitem(last=False)
            self._bytes -= len(oldest.content)


def _charset(content_type: str) -> str:
    message = Message()
    message["content-type"] = content_type
    return message.get_content_charset("") or ""

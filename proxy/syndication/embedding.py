"""From what a post is published with to what stands in its record: pictures uploaded, the embed built."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from proxy.clock import Clock
from proxy.errors import OutsideError, PdsBusy, PdsRejected, PdsUnreachable
from proxy.syndication.enriching import PICTURE_EDGE, THUMB_EDGE, Enricher
from proxy.syndication.enrichment import Enrichment, enrichment_of, pictures_of
from proxy.syndication.foreign import Picture
from proxy.syndication.intent import Embed
from proxy.syndication.post import Image, Post
from proxy.syndication.records import Records
from proxy.tenants import Site

# A PDS forgets after an hour or so what no record names.
BLOB_LIFETIME_S: Final = 45 * 60.0

# What one may wait for to be allowed an upload; the limits of a day are not waited for.
_WORTH_WAITING_S: Final = 300.0

_MIME_TYPE: Final = "image/jpeg"
_CARD: Final = "app.bsky.embed.external"
_PICTURES: Final = "app.bsky.embed.images"


class Embedder:
    """Builds embeds, for one account at a time.

    Pictures that are not at hand, or cannot be uploaded, are left out. `patient`: it is worth trying later
    when the PDS cannot take them now.
    """

    def __init__(self, enricher: Enricher, clock: Clock) -> None:
        self._enricher = enricher
        self._clock = clock

    async def embed(
        self,
        post: Post,
        site: Site,
        enrichment: Enrichment,
        records: Records,
        *,
        deadline_at: float,
        patient: bool,
    ) -> Embed:
        """The embed of `post`, its pictures fetched by `deadline_at` and uploaded.

        Raises what Records raises.
        """
        uploaded_at = self._clock.wall()
        images = pictures_of(post, enrichment)
        ours = [(image.url, PICTURE_EDGE) for image in images] or [(enrichment.picture, THUMB_EDGE)]
        taken = await asyncio.gather(
            *(self._picture(site, url, edge, deadline_at) for url, edge in ours if url)
        )
        degraded = list(enrichment.degraded)
        blobs: list[tuple[Mapping[str, Any], Picture, int]] = []
        for place, picture in enumerate(taken):
            blob = await self._upload(picture, records, patient=patient)
            if isinstance(picture, Picture) and not isinstance(blob, str):
                blobs.append((blob, picture, place))
            else:
                degraded.append(f"picture {place + 1}: {blob}" if images else f"the card's picture: {blob}")
        if images and blobs:
            value = _pictures([(images[place], blob, picture) for blob, picture, place in blobs])
        else:
            value = _card(post, enrichment, blobs[0][0] if blobs else None)
        return Embed(value=value, degraded=tuple(degraded), uploaded_at=uploaded_at if blobs else 0.0)

    async def _picture(self, site: Site, url: str, edge: int, deadline_at: float) -> Picture | str:
        try:
            return await self._enricher.picture(site, url, edge=edge, deadline_at=deadline_at)
        except OutsideError as error:
            return str(error)

    async def _upload(
        self, picture: Picture | str, records: Records, *, patient: bool
    ) -> Mapping[str, Any] | str:
        """The reference to `picture`, or why there is none."""
        if isinstance(picture, str):
            return picture
        try:
            return await records.upload(picture.content, _MIME_TYPE)
        except PdsRejected as error:
            return str(error)
        except PdsBusy as error:
            if error.wait_s <= _WORTH_WAITING_S:
                raise
            return str(error)
        except PdsUnreachable as error:
            # If it is the PDS that is away, and not its store of blobs, the record cannot be sent either.
            if patient or not error.sent:
                raise
            return str(error)


def bare_embed(post: Post, embed: Mapping[str, Any] | None = None, reason: str = "") -> Embed:
    """What is left of `embed`, that of `post`, without any picture, for the given reason."""
    external = (embed or {}).get("external")
    if external:
        bare = {name: value for name, value in external.items() if name != "thumb"}
        value: Mapping[str, Any] = {"$type": _CARD, "external": bare}
    else:
        value = _card(post, enrichment_of(post), None)
    return Embed(value=value, degraded=(reason,) if reason else ())


def _card(post: Post, enrichment: Enrichment, thumb: Mapping[str, Any] | None) -> Mapping[str, Any]:
    external = {"uri": post.url, "title": enrichment.title, "description": enrichment.description}
    return {"$type": _CARD, "external": external | ({"thumb": thumb} if thumb else {})}


def _pictures(pictures: list[tuple[Image, Mapping[str, Any], Picture]]) -> Mapping[str, Any]:
    images = [
        {
            "image": blob,
            "alt": image.alt,
            "aspectRatio": {"width": picture.width, "height": picture.height},
        }
        for image, blob, picture in pictures
    ]
    return {"$type": _PICTURES, "images": images}

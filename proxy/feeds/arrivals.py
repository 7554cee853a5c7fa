"""From what the upstream replied to the entry that is stored."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from proxy.bluesky.appview import Reply
from proxy.feeds.entry import Entry, compressed, dids_for
from proxy.feeds.freshness import initial_age
from proxy.feeds.key import FeedKey
from proxy.feeds.storability import merged

# To hand so little to a thread takes longer than to do it.
_SMALL_BYTES: Final = 8 * 1024


class Arrivals:
    """Makes entries; `draw` gives each its stamp, and the sample that sets its early refresh."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def confirmed(self, reply: Reply, stored: Entry) -> Entry:
        """What is `stored`, of which the upstream says that it has not changed (RFC 9111 §4.3.4)."""
        kept = {"etag": stored.upstream_etag, "atproto-content-labelers": stored.labelers}
        headers = merged({name: value for name, value in kept.items() if value is not None}, reply.headers)
        return replace(
            stored,
            stamp=self._stamp(),
            upstream_etag=_plain(headers.get("etag")),
            labelers=_plain(headers.get("atproto-content-labelers")),
            initial_age_s=initial_age(reply.headers.get("age"), reply.took_s),
            cost_s=reply.took_s,
            early_draw=self._draw.expovariate(1.0),
        )

    async def entry(self, key: FeedKey, reply: Reply, stored: Entry | None) -> Entry:
        """The reply to `key`, as it is to be stored in place of what is.

        One that says the same, as most do, keeps its `bodies`: to compress them takes a millisecond.
        """
        document = reply.document or {}
        cursor = document.get("cursor")
        known_dids = {} if stored is None else stored.dids
        bodies: Mapping[str, bytes]
        if stored is not None and stored.bodies["identity"] == reply.body:
            bodies, body_hash, dids = stored.bodies, stored.body_hash, {}
        elif len(reply.body) <= _SMALL_BYTES:
            (bodies, body_hash), dids = compressed(reply.body), dids_for(key, document)
        else:
            (bodies, body_hash), dids = await asyncio.gather(
                asyncio.to_thread(compressed, reply.body), asyncio.to_thread(dids_for, key, document)
            )
        return Entry(
            key_id=key.id,
            stamp=self._stamp(),
            status=reply.status,
            content_type=_plain(reply.headers.get("content-type")) or "application/json",
            bodies=bodies,
            body_hash=body_hash,
            upstream_etag=_plain(reply.headers.get("etag")),
            labelers=_plain(reply.headers.get("atproto-content-labelers")),
            initial_age_s=initial_age(reply.headers.get("age"), reply.took_s),
            cost_s=reply.took_s,
            early_draw=self._draw.expovariate(1.0),
            dids={**known_dids, **dids},
            cursor=cursor if isinstance(cursor, str) else None,
        )

    def _stamp(self) -> str:
        return f"{self._draw.getrandbits(64):016x}"


def _plain(value: str | None) -> str | None:
    """A header value that may be passed on: printable ASCII, or nothing."""
    return value if value is not None and value.isascii() and value.isprintable() else None

"""What the tests of the widget share: pages with it, and feeds of an upstream of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from real.harness import Proxy

from harness.upstream import Upstream

ELEMENT = '<bluesky-feed actor="alice.test"></bluesky-feed>'
NEVER_KEPT = {"CACHE_TTL": "1", "STALE_WHILE_REVALIDATE": "0", "CLIENT_MAX_AGE": "0"}


def page_of(proxy: Proxy, body: str = ELEMENT) -> str:
    return f'<script src="{proxy.url}/widget.js" defer></script>{body}'


def post_of(number: object, text: str, **more: object) -> dict[str, object]:
    author = {"did": "did:plc:alice", "handle": "alice.test", "displayName": "Alice"}
    record = {"text": text, "createdAt": "2026-11-22T05:52:14Z"}
    uri = f"at://did:plc:alice/app.bsky.feed.post/{number}"
    return {"post": {"uri": uri, "author": author, "record": record, **more}}


def feed_of(count: int, text: str = "post") -> dict[str, object]:
    return {"feed": [post_of(number, f"{text} {number}") for number in range(count)]}


@asynccontextmanager
async def proxy_before(upstream: Upstream, directory: Path, **settings: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(upstream.url, directory, settings)
    await asyncio.to_thread(proxy.start)
    try:
        yield proxy
    finally:
        await asyncio.to_thread(proxy.stop)

"""What the tests of the widget share: pages with it, and feeds of an upstream of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from real.browser import Reader
from real.harness import Proxy

from harness.upstream import Upstream

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
NARROW = {"viewport": {"width": 390, "height": 844}}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
MOST_SHIFT = 0.02
WITH_REPLIES = 'filter="posts_with_replies"'
ELEMENT = '<bluesky-feed actor="alice.test"></bluesky-feed>'
LONG = '<bluesky-feed actor="alice.test" limit="30"></bluesky-feed>'
TOKEN = "whoever tests may purge what is stored"
NEVER_KEPT = {"CACHE_TTL": "1", "STALE_WHILE_REVALIDATE": "0", "CLIENT_MAX_AGE": "0"}


def script(proxy: Proxy) -> str:
    return f'<script src="{proxy.url}/widget.js" defer></script>'


def element(actor: str = "alice.test", more: str = "") -> str:
    return f'<bluesky-feed actor="{actor}" {more}></bluesky-feed>'


def words(count: int = 150) -> str:
    return f"<p>{'Some words of the page itself. ' * count}</p>"


async def fragment(proxied: httpx.Client, actor: str = "alice.test", **options: object) -> str:
    answer = await asyncio.to_thread(proxied.get, f"/embed/{actor}", params={"fragment": 1, **options})
    assert answer.status_code == 200
    return answer.text


async def texts(reader: Reader, selector: str) -> list[str]:
    return [text.strip() for text in await reader.page.locator(selector).all_inner_texts()]


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
    proxy = Proxy(upstream.url, directory, {"ADMIN_TOKEN": TOKEN} | settings)
    await asyncio.to_thread(proxy.start)
    try:
        yield proxy
    finally:
        await asyncio.to_thread(proxy.stop)


async def forget(proxy: Proxy) -> None:
    """Whatever the proxy has stored, or is about to store, it answers with no more."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(headers=bearer) as client:
        answer = await client.post(f"{proxy.url}/purge", json={"all": True})
    assert answer.status_code == 200

"""Embeds that others wrote, pointed at the proxy: the same feed."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMPORTS = {
    "@atcute/client": "/modules/@atcute/client/dist/index.js",
    "@atcute/bluesky-richtext-segmenter": "/modules/@atcute/bluesky-richtext-segmenter/dist/index.js",
    "bluesky-profile-feed-embed": "/modules/bluesky-profile-feed-embed/dist/wc.js",
}
THEIR_HOST = "https://api.bsky.app"


async def test_bluesky_profile_feed_embed(proxy, network, site, read):
    head = f'<script type="importmap">{json.dumps({"imports": IMPORTS})}</script>'
    body = (
        f'<bluesky-profile-feed actor="{network.did("alice")}" include-pins service-uri="{proxy.url}">'
        '</bluesky-profile-feed><script type="module">import "bluesky-profile-feed-embed"</script>'
    )
    reader = await read(site.put(body, head=head))
    embed = reader.page.locator("bluesky-profile-feed")
    await embed.get_by_text("filler post 60", exact=True).wait_for()
    text = await embed.inner_text()
    for words in ("Grüße 👋🏽", "Alice", "An example article", "hello from bob", "two pictures"):
        assert words in text
    asked = [url for url in reader.requests if "/xrpc/" in url]
    assert asked
    assert all(url.startswith(proxy.url) for url in asked)
    assert reader.trouble == []


async def test_bsky_embed_with_its_host_replaced(proxy, site, read):
    bundle = site.find("/modules/bsky-embed/dist/bsky-embed.es.js").decode()
    assert THEIR_HOST in bundle
    site.pages["/bsky-embed.js"] = bundle.replace(THEIR_HOST, proxy.url)
    body = '<bsky-embed username="alice.test" limit="8"></bsky-embed>'
    reader = await read(site.put(body, head='<script type="module" src="/bsky-embed.js"></script>'))
    embed = reader.page.locator("bsky-embed")
    await embed.get_by_text("a link card", exact=True).wait_for()
    text = await embed.evaluate("element => element.shadowRoot.textContent")
    for words in ("hello from bob", "bob, quoted", "An example article", "two pictures"):
        assert words in text
    asked = [url for url in reader.requests if "/xrpc/" in url]
    assert asked
    assert all(url.startswith(proxy.url) for url in asked)

"""Embeds that others wrote, pointed at the proxy: the same feed as when they ask the AppView itself."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMPORTS = {
    "@atcute/client": "/modules/@atcute/client/dist/index.js",
    "@atcute/bluesky-richtext-segmenter": "/modules/@atcute/bluesky-richtext-segmenter/dist/index.js",
    "bluesky-post-embed": "/modules/bluesky-post-embed/dist/wc.js",
    "bluesky-profile-feed-embed": "/modules/bluesky-profile-feed-embed/dist/wc.js",
}
THEIR_HOST = "https://api.bsky.app"
WORDS = ("Alice", "An example article", "hello from bob", "two pictures")
# What an embed shows, short of how long ago that was.
SHOWN = """
    (embed) => {
      const root = embed.shadowRoot ?? embed
      const all = (selector, name) => [...root.querySelectorAll(selector)].map((element) => element[name])
      const text = root.textContent.replace(/\\d+[smh]/g, '')
      return { links: all('a', 'href'), pictures: all('img', 'src'), text }
    }
"""


async def seen(reader, name: str, last: str, service: str) -> dict[str, object]:
    """What the embed shows when the post with the words `last` is there; it asks `service` alone."""
    embed = reader.page.locator(name)
    await embed.get_by_text(last, exact=True).wait_for()
    asked = [url for url in reader.requests if "/xrpc/" in url]
    assert asked
    assert all(url.startswith(service) for url in asked)
    assert reader.trouble == []
    return await embed.evaluate(SHOWN)


async def test_bluesky_profile_feed_embed(proxy, network, site, read):
    head = f'<script type="importmap">{json.dumps({"imports": IMPORTS})}</script>'
    both = []
    for service in (network.appview, proxy.url):
        body = (
            f'<bluesky-profile-feed actor="{network.did("alice")}" include-pins service-uri="{service}">'
            '</bluesky-profile-feed><script type="module">import "bluesky-profile-feed-embed"</script>'
        )
        reader = await read(site.put(body, head=head))
        both.append(await seen(reader, "bluesky-profile-feed", "filler post 60", service))
    assert both[0] == both[1]
    assert len(both[0]["links"]) > 20
    for words in ("Grüße 👋🏽", *WORDS):
        assert words in both[1]["text"]


async def test_bsky_embed_with_its_host_replaced(proxy, network, site, read):
    bundle = site.find("/modules/bsky-embed/dist/bsky-embed.es.js").decode()
    assert THEIR_HOST in bundle
    body = '<bsky-embed username="alice.test" limit="8"></bsky-embed>'
    both = []
    for service in (network.appview, proxy.url):
        site.pages["/bsky-embed.js"] = bundle.replace(THEIR_HOST, service)
        reader = await read(site.put(body, head='<script type="module" src="/bsky-embed.js"></script>'))
        both.append(await seen(reader, "bsky-embed", "a link card", service))
    assert both[0] == both[1]
    assert len(both[0]["links"]) > 10
    for words in WORDS[1:]:
        assert words in both[1]["text"]

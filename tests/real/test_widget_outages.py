"""Whatever is down, a reader who has seen the feed sees it again, and how old it is."""

from __future__ import annotations

import asyncio
import itertools
from datetime import datetime

import httpx
import pytest
from real.harness import Proxy
from real.test_outage import Outage, is_aged
from real.test_outage import ask as ask_proxy
from real.widgets import NEVER_KEPT, feed_of, page_of

from harness.upstream import Upstream, json_response
from harness.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT_LIVED = {"CACHE_TTL": "1", "STALE_WHILE_REVALIDATE": "1", "UPSTREAM_TIMEOUT": "4"}
FEED = "/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.test"
QUESTION = f"{FEED}&limit=30&filter=posts_and_author_threads&includePins=true"


async def ask(proxy) -> httpx.Response:
    """What the widget would be answered."""
    return await asyncio.to_thread(ask_proxy, proxy, QUESTION)


async def passes_on(proxy, words: str) -> bool:
    return words in (await ask(proxy)).text


async def updated_at(reader) -> datetime:
    return datetime.fromisoformat(await reader.page.locator(".updated time").get_attribute("datetime"))


@pytest.fixture
def outage(network):
    outage = Outage(network)
    yield outage
    outage.end()


async def test_the_upstream_is_killed_and_the_page_reloaded(start_proxy, outage, site, read):
    proxy = start_proxy(**SHORT_LIVED)
    reader = await read(site.put(page_of(proxy)))
    await reader.shows()
    first, seen = await updated_at(reader), await reader.page.locator(".text").all_inner_texts()
    assert await reader.page.locator(".post").count() == 10
    outage.begin()

    async def aged() -> bool:
        return is_aged(await ask(proxy))

    await until(aged)

    # Who was never here before has nothing but the proxy's copy; the other's browser has one as well.
    stranger = await read(site.put(page_of(proxy)))
    for visitor, updated in ((reader, ".updated"), (stranger, ".feed[data-stale] .updated")):
        await visitor.page.reload()
        await visitor.shows(updated)
        assert await visitor.page.locator(".text").all_inner_texts() == seen
        assert (await updated_at(visitor) - first).total_seconds() < 3
        assert (await visitor.page.locator(updated).inner_text()).startswith("updated ")


async def test_the_proxy_is_killed_and_the_page_reloaded(start_proxy, site, read):
    proxy = start_proxy()
    reader = await read(site.put(page_of(proxy)))
    await reader.shows()
    first, seen = await updated_at(reader), await reader.page.locator(".text").all_inner_texts()
    proxy.stop()
    await reader.page.reload()
    await reader.shows()
    assert await reader.page.locator(".text").all_inner_texts() == seen
    assert await updated_at(reader) == first
    # Somebody new has nothing but what the page itself says.
    stranger = await read(site.put(page_of(proxy)))
    assert await stranger.page.locator(".post").count() == 0


async def test_the_copy_outlives_what_the_browser_caches(start_proxy, site, read):
    proxy = start_proxy()
    site.pages["/own.js"] = (await asyncio.to_thread(ask_proxy, proxy, "/widget.js")).text
    own = f'<script src="/own.js" defer></script><bluesky-feed actor="alice.test" proxy="{proxy.url}">'
    reader = await read(site.put(f"{own}</bluesky-feed>"))
    await reader.shows()
    first, seen = await updated_at(reader), await reader.page.locator(".text").all_inner_texts()
    proxy.stop()
    browser_of_theirs = await reader.context.new_cdp_session(reader.page)
    await browser_of_theirs.send("Network.clearBrowserCache")
    await reader.page.reload()
    await reader.shows(".feed[data-stale] .updated")
    assert await reader.page.locator(".text").all_inner_texts() == seen
    assert await updated_at(reader) == first


@pytest.fixture
def before(tmp_path):
    """A proxy before an upstream of the test's own: before(upstream)."""
    started: list[Proxy] = []

    def start(upstream: Upstream, **settings: str) -> Proxy:
        proxy = Proxy(upstream.url, tmp_path, settings)
        started.append(proxy)
        proxy.start()
        return proxy

    yield start
    for proxy in started:
        proxy.stop()


async def test_ten_widgets_are_one_request(before, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(feed_of(40))
        proxy = before(upstream)
        widgets = "".join(
            f'<bluesky-feed actor="alice.test" limit="{1 + number}"></bluesky-feed>' for number in range(10)
        )
        reader = await read(site.put(f'<script src="{proxy.url}/widget.js" defer></script>{widgets}'))
        for number in range(10):
            await reader.page.locator("bluesky-feed").nth(number).locator(".post").first.wait_for()
        assert await reader.page.locator(".post").count() == sum(range(1, 11))
        # Whoever changes them, shows the page again or comes back online causes none within a second either.
        await reader.page.evaluate(
            "for (let n = 0; n < 50; n += 1) { for (const feed of document.querySelectorAll('bluesky-feed')) "
            "feed.setAttribute('limit', 1 + n % 30); dispatchEvent(new Event('online')); "
            "document.dispatchEvent(new Event('visibilitychange')) }"
        )
        await reader.page.locator("bluesky-feed").first.locator(".post").nth(19).wait_for()
        began_at_ms = await reader.page.evaluate(
            "performance.getEntriesByType('resource').filter(entry => entry.name.includes('/xrpc/'))"
            ".map(entry => entry.startTime)"
        )
        assert began_at_ms
        assert all(later - earlier >= 1000 for earlier, later in itertools.pairwise(began_at_ms))
        assert upstream.count == 1


async def test_ten_widgets_are_one_request_whatever_they_call_the_account(before, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(feed_of(60))
        proxy = before(upstream)
        asked = [
            (name, limit)
            for limit in (5, 10, 50)
            for name in ("bob.test", "BOB.test", "@bob.test", "at://bob.test")
        ][:10]
        widgets = "".join(
            f'<bluesky-feed actor="{name}" limit="{limit}"></bluesky-feed>' for name, limit in asked
        )
        reader = await read(
            site.put(page_of(proxy, widgets).replace('<bluesky-feed actor="alice.test">', ""))
        )
        for number, (_, limit) in enumerate(asked):
            await reader.page.locator("bluesky-feed").nth(number).locator(".post").nth(limit - 1).wait_for()
        await reader.settled()
        assert upstream.count == len([url for url in reader.requests if "/xrpc/" in url]) == 1
        # The browser keeps one copy for them all.
        await reader.page.route("**/xrpc/**", lambda route: route.abort())
        await reader.page.reload()
        for number, (_, limit) in enumerate(asked):
            await reader.page.locator("bluesky-feed").nth(number).locator(".post").nth(limit - 1).wait_for()


async def test_what_is_new_comes_when_the_reader_comes_back(before, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(feed_of(3))
        proxy = before(upstream, **NEVER_KEPT)
        reader = await read("about:blank")
        await reader.page.clock.install()
        await reader.page.goto(site.put(page_of(proxy)))
        await reader.shows()
        assert await reader.page.locator(".updated").inner_text() == "updated now"
        upstream.answer = lambda _: json_response(feed_of(4, "new"))
        await until(lambda: passes_on(proxy, "new 3"))

        async def comes_back() -> bool:
            # The browser may give its own copy first, while it asks for a new one.
            await reader.page.clock.fast_forward(11_000)
            await reader.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            return await reader.page.locator(".text", has_text="new 3").count() == 1

        await until(comes_back)


async def test_the_words_follow_the_clock(before, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(feed_of(3))
        proxy = before(upstream)
        reader = await read("about:blank")
        await reader.page.clock.install()
        await reader.page.goto(site.put(page_of(proxy)))
        await reader.shows()
        await reader.page.clock.fast_forward(185_000)
        await reader.page.locator(".updated", has_text="updated 3 minutes ago").wait_for()
        assert await reader.page.locator(".feed[data-stale]").count() == 0
        await upstream.stop()
        await reader.page.clock.fast_forward(7_300_000)
        await reader.page.locator(".feed[data-stale] .updated", has_text="updated 2 hours ago").wait_for()


async def test_nobody_is_disturbed_while_reading(before, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(feed_of(3))
        proxy = before(upstream, **NEVER_KEPT)
        reader = await read("about:blank")
        await reader.page.clock.install()
        await reader.page.goto(site.put(page_of(proxy)))
        await reader.shows()
        reading = reader.page.locator(".post").nth(1)
        await reading.focus()
        upstream.answer = lambda _: json_response(feed_of(4, "new"))
        await until(lambda: passes_on(proxy, "new 3"))
        for _ in range(2):
            async with reader.page.expect_response(lambda response: "/xrpc/" in response.url):
                await reader.page.clock.fast_forward(301_000)
            await reader.settled()
            assert await reader.page.locator(".text").all_inner_texts() == ["post 0", "post 1", "post 2"]
        await reading.evaluate("post => post.blur()")
        await reader.page.clock.fast_forward(30_000)
        await reader.page.locator(".text", has_text="new 3").wait_for()


async def test_the_browser_keeps_few_copies(before, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(feed_of(100, "x" * 3000))
        proxy = before(upstream)
        widgets = "".join(f'<bluesky-feed actor="a{number}.test"></bluesky-feed>' for number in range(12))
        reader = await read(site.put(f'<script src="{proxy.url}/widget.js" defer></script>{widgets}'))
        for number in range(12):
            await reader.page.locator("bluesky-feed").nth(number).locator(".post").first.wait_for()
        sizes = await reader.page.evaluate("Object.values(localStorage).map(copy => copy.length)")
        assert 0 < len(sizes) <= 8
        assert max(sizes) <= 150_000


async def test_a_browser_without_storage_shows_feeds_all_the_same(before, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(feed_of(3))
        proxy = before(upstream)
        frame = '<iframe sandbox="allow-scripts" src="/inside" title="inside"></iframe>'
        site.put(page_of(proxy), path="/inside")
        reader = await read(site.put(frame))
        await reader.page.frame_locator("iframe").locator(".post").first.wait_for()
        assert reader.trouble == []

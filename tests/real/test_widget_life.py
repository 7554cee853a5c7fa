"""The elements in a page that lives: changed, moved, scrolled, read, with clocks that go astray."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from real.widgets import LONG, NARROW, NEVER_KEPT, feed_of, forget, page_of, post_of, proxy_before

from harness.upstream import Upstream, json_response
from harness.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BELOW = '<p id="below">below</p><div style="height:3000px"></div>'
COUNT_UPDATES = (
    "window.updates = 0; document.addEventListener('bluesky-update', (event) => "
    "{ window.updates += 1; window.said = event.detail })"
)
TOP = "e => Math.round(e.getBoundingClientRect().top)"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running():
    async with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def proxy(running, tmp_path_factory):
    """It keeps nothing: what the upstream has is what the page gets."""
    async with proxy_before(running, tmp_path_factory.mktemp("life"), **NEVER_KEPT) as proxy:
        yield proxy


@pytest_asyncio.fixture(loop_scope="module")
async def upstream(running, proxy):
    """It has twenty posts, and the proxy has forgotten what the test before has taught it."""
    running.answer = lambda _: json_response(feed_of(20))
    await forget(proxy)
    running.requests.clear()
    return running


@pytest.fixture
def open_page(proxy, upstream, site, read):
    """A page whose clock the test has."""

    async def open_page(body: str, **options: object):
        reader = await read("about:blank", **NARROW)
        await reader.page.clock.install()
        await reader.page.goto(site.put(page_of(proxy, body), **options))
        await reader.shows()
        await reader.page.evaluate(COUNT_UPDATES)
        return reader

    return open_page


async def updated(reader) -> None:
    """Let five minutes pass; the widget has asked then, and done with the answer as it thinks right."""
    before = await reader.page.evaluate("window.updates")
    await reader.page.clock.fast_forward(301_000)

    async def done() -> bool:
        return await reader.page.evaluate("window.updates") > before

    await until(done)


async def refreshed(reader, text: str) -> None:
    """Let five minutes pass, as often as it takes for `text` to be there."""

    async def there() -> bool:
        await updated(reader)
        return await reader.page.get_by_text(text, exact=True).count() == 1

    await until(there)


def one_more(upstream) -> None:
    """There is a new post on top, and one of many lines."""
    feed = feed_of(20)["feed"]
    upstream.answer = lambda _: json_response(
        {"feed": [post_of("new", "new"), post_of("n", "x\n" * 9), *feed]}
    )


class TestAttributes:
    async def test_what_changes_together_is_asked_for_once(self, upstream, open_page):
        reader = await open_page(LONG)
        upstream.requests.clear()
        await reader.page.locator("bluesky-feed").evaluate(
            "e => { e.setAttribute('actor', 'bob.test'); e.setAttribute('filter', 'posts_no_replies');"
            " e.setAttribute('limit', '3') }"
        )
        await reader.shows()
        assert await reader.page.locator(".post").count() == 3
        asked = [(one.params["actor"], one.params["filter"]) for one in upstream.requests]
        assert asked == [(["bob.test"], ["posts_no_replies"])]

    async def test_made_and_changed_by_a_script(self, upstream, open_page):
        reader = await open_page(LONG)
        await reader.page.evaluate(
            "const feed = document.createElement('bluesky-feed'); feed.id = 'made';"
            "feed.setAttribute('actor', 'carol.test'); document.body.append(feed);"
            "feed.setAttribute('limit', 2)"
        )
        await reader.page.locator("#made .post").first.wait_for()
        assert await reader.page.locator("#made .post").count() == 2

    async def test_moved_it_stays_as_it_is(self, upstream, open_page):
        reader = await open_page(f"{LONG}<section></section>")
        await reader.page.locator(".post").nth(4).evaluate("post => { window.before = post }")
        upstream.requests.clear()
        await reader.page.evaluate(
            "for (let n = 0; n < 20; n += 1) document.querySelector(n % 2 ? 'section' : 'main')"
            ".append(document.querySelector('bluesky-feed'))"
        )
        kept = (
            "window.before === document.querySelector('bluesky-feed').shadowRoot.querySelectorAll('.post')[4]"
        )
        assert await reader.page.evaluate(kept)
        assert upstream.requests == []

    async def test_changed_while_it_is_away(self, upstream, open_page):
        reader = await open_page(LONG)
        await reader.page.evaluate(
            "const feed = document.querySelector('bluesky-feed'); feed.remove();"
            "feed.setAttribute('limit', 4);"
            "setTimeout(() => document.body.append(feed), 1000)"
        )
        await reader.page.clock.fast_forward(1000)
        await reader.page.locator(".post").nth(3).wait_for()
        assert await reader.page.locator(".post").count() == 4

    async def test_it_says_when_it_has_news(self, upstream, open_page):
        reader = await open_page(LONG)
        one_more(upstream)
        await refreshed(reader, "new")
        assert await reader.page.evaluate("window.said") == {"posts": 22, "stale": False}


class TestReading:
    @pytest.mark.parametrize("place", ["bluesky-feed >> text=post 11", "#below"])
    async def test_what_is_read_stays_where_it_is(self, upstream, open_page, place):
        reader = await open_page(LONG + BELOW)
        read = reader.page.locator(place)
        await read.evaluate("e => scrollTo(0, e.getBoundingClientRect().top + scrollY - 300)")
        top = await read.evaluate(TOP)
        one_more(upstream)
        await refreshed(reader, "new")
        assert abs(await read.evaluate(TOP) - top) <= 1

    async def test_also_in_a_frame_of_its_own(self, upstream, open_page):
        reader = await open_page(LONG.replace(">", ' style="display:block;height:20rem">', 1) + BELOW)
        read = reader.page.locator("bluesky-feed >> text=post 11")
        await reader.page.locator(".feed").evaluate("feed => feed.scrollTo(0, 700)")
        top = await read.evaluate(TOP)
        one_more(upstream)
        await refreshed(reader, "new")
        assert abs(await read.evaluate(TOP) - top) <= 1
        assert await reader.page.evaluate("scrollY") == 0

    async def test_at_the_top_what_is_new_is_seen(self, upstream, open_page):
        reader = await open_page(LONG.replace(">", ' style="display:block;min-height:100vh">', 1) + BELOW)
        one_more(upstream)
        await refreshed(reader, "new")
        assert await reader.page.evaluate("scrollY") == 0
        assert await reader.page.evaluate("window.shifts") < 0.02

    async def test_what_was_opened_stays_open(self, upstream, open_page):
        covered = post_of("adult", "covered", labels=[{"val": "porn"}])
        upstream.answer = lambda _: json_response({"feed": [covered, *feed_of(3)["feed"]]})
        reader = await open_page(LONG)
        await reader.page.locator("summary").click()
        upstream.answer = lambda _: json_response({"feed": [post_of("new", "new"), covered]})
        await refreshed(reader, "new")
        assert await reader.page.get_by_text("covered", exact=True).is_visible()

    async def test_who_has_selected_text_keeps_it(self, upstream, open_page):
        reader = await open_page(LONG)
        text = reader.page.get_by_text("post 3", exact=True)
        await text.click(click_count=3)
        one_more(upstream)
        for _ in range(3):
            await updated(reader)
            assert await reader.page.get_by_text("new", exact=True).count() == 0
        await reader.page.locator("h1").click()
        await refreshed(reader, "new")

    async def test_who_holds_on_to_something_costs_no_more_than_others(self, upstream, open_page):
        reader = await open_page(LONG)
        for hold in ("focus", "selection"):
            if hold == "focus":
                await reader.page.locator(".post").nth(2).focus()
            else:
                await reader.page.get_by_text("post 3", exact=True).click(click_count=3)
            one_more(upstream)
            upstream.requests.clear()
            # Each step waits for the page. Not for the network: of what Chromium asks again in the background
            # it says for half a minute that it is under way.
            for _ in range(40):
                await reader.page.clock.run_for(15_000)
            assert len(upstream.requests) <= 3

    async def test_a_click_long_ago_does_not_hold_the_feed_up(self, upstream, open_page):
        reader = await open_page(LONG)
        await reader.page.locator(".post").nth(2).click()
        assert await reader.page.evaluate("document.querySelector('bluesky-feed').shadowRoot.activeElement")
        one_more(upstream)
        await refreshed(reader, "new")


class TestClocks:
    async def test_a_clock_that_is_set_back_does_not_stop_it(self, proxy, upstream, site, read):
        reader = await read("about:blank", **NARROW)
        await reader.page.add_init_script(
            "window.back = 0; const now = Date.now; Date.now = () => now() - window.back"
        )
        await reader.page.clock.install()
        await reader.page.goto(site.put(page_of(proxy, LONG)))
        await reader.shows()
        await reader.page.evaluate(COUNT_UPDATES)
        await reader.page.evaluate("window.back = 86_400_000")
        one_more(upstream)
        await refreshed(reader, "new")

    async def test_a_clock_that_runs_ahead_makes_nothing_old(self, proxy, upstream, site, read):
        reader = await read("about:blank", **NARROW)
        ahead = datetime.now(UTC) + timedelta(days=1000)
        await reader.page.clock.install(time=ahead)
        url = site.put(page_of(proxy, LONG))
        await reader.page.goto(url)
        seconds = re.compile(r"^updated (now|\d+ seconds? ago|[12] minutes? ago)$")
        await reader.page.locator(".updated", has_text=seconds).wait_for()
        assert await reader.page.locator(".feed[data-stale]").count() == 0
        # Nor is the copy in the browser, when there is nothing else.
        await reader.page.route("**/xrpc/**", lambda route: route.abort())
        await reader.page.reload()
        await reader.page.locator(".feed[data-stale] .updated", has_text=seconds).wait_for()

"""The elements in a page that lives: changed, moved, scrolled, read, printed, spoken to by scripts."""

from __future__ import annotations

import asyncio
import html
import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import pytest_asyncio
from real.widgets import NEVER_KEPT, feed_of, page_of, post_of, proxy_before

from harness.upstream import Upstream, json_response
from harness.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {"viewport": {"width": 390, "height": 844}}
LONG = '<bluesky-feed actor="alice.test" limit="30"></bluesky-feed>'
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


@pytest.fixture
def upstream(running):
    running.answer = lambda _: json_response(feed_of(20))
    running.requests.clear()
    return running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def proxy(running, tmp_path_factory):
    """It keeps nothing: what the upstream has is what the page gets."""
    async with proxy_before(running, tmp_path_factory.mktemp("life"), **NEVER_KEPT) as proxy:
        yield proxy


@pytest.fixture
def open_page(proxy, upstream, site, read):
    """A page whose clock the test has."""

    async def open_page(body: str, **options: object):
        reader = await read("about:blank", **PHONE)
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
    async def test_what_is_read_stays_where_it_is(self, upstream, open_page):
        reader = await open_page(LONG + BELOW)
        for place in ("bluesky-feed >> text=post 11", "#below"):
            read = reader.page.locator(place)
            upstream.answer = lambda _: json_response(feed_of(20))
            await refreshed(reader, "post 0")
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
            for _ in range(40):
                await reader.page.clock.run_for(15_000)
            await reader.settled()
            assert len(upstream.requests) <= 3

    async def test_a_click_long_ago_does_not_hold_the_feed_up(self, upstream, open_page):
        reader = await open_page(LONG)
        await reader.page.locator(".post").nth(2).click()
        assert await reader.page.evaluate("document.querySelector('bluesky-feed').shadowRoot.activeElement")
        one_more(upstream)
        await refreshed(reader, "new")


class TestLanguage:
    @pytest.mark.parametrize(
        ("language", "words", "age"),
        [
            ("de-AT", "aktualisiert vor 3 Minuten", "vor 5 Std."),
            ("pt", "updated 3 minutes ago", "há 5 h"),  # no sentence in two languages
            ("no such language", "updated 3 minutes ago", "5h ago"),
        ],
    )
    async def test_words_and_times(self, proxy, upstream, site, read, language, words, age):
        reader = await read("about:blank", locale="en-US")
        await reader.page.clock.install(time="2026-11-22T10:52:14Z")
        await reader.page.goto(site.put(page_of(proxy, LONG), html=f'lang="{language}"'))
        await reader.shows()
        updated = reader.page.locator(".updated time")
        await updated.evaluate(
            "(e) => { e.dateTime = '2026-11-22T10:49:10Z';"
            " document.dispatchEvent(new Event('visibilitychange')) }"
        )
        assert await reader.page.locator(".updated").inner_text() == words
        assert (await reader.page.locator(".when").first.inner_text()) == age

    async def test_a_page_within_a_component_has_the_language_of_the_page(self, proxy, upstream, site, read):
        component = f'<div><template shadowrootmode="open">{LONG}</template></div>'
        reader = await read(site.put(page_of(proxy, component), html='lang="fr"'))
        await reader.shows()
        assert "Voir sur Bluesky" in await reader.page.locator(".more").inner_text()


class TestOtherPages:
    async def test_twice_the_script_is_once(self, proxy, upstream, site, read):
        reader = await read(site.put(page_of(proxy, page_of(proxy, LONG))))
        await reader.shows()
        assert reader.trouble == []

    async def test_a_broken_copy_in_the_browser_is_none(self, proxy, upstream, site, read):
        url = site.put(page_of(proxy, LONG + LONG.replace("feed", "profile")))
        reader = await read(url)
        await reader.shows()
        copies = ['{"updatedAt": 1, "body": {}}', '{"updatedAt": 1, "body": 7}', "null", "{", '"x"', "[]"]
        for copy in copies:
            await reader.page.evaluate(
                "copy => { for (const name in localStorage) localStorage[name] = copy }", copy
            )
            await reader.page.reload()
            await reader.page.locator(".post").nth(19).wait_for()
            assert reader.trouble == []

    async def test_styles_of_the_page_do_not_reach_in(self, proxy, upstream, site, read):
        style = "<style>:not(html) { display: none; position: absolute; font: 99px serif; color: red }"
        style += " html, body, main { display: block } bluesky-feed { display: block !important }</style>"
        reader = await read(site.put(page_of(proxy, LONG), head=style))
        await reader.shows()
        seen = await reader.page.locator(".text").first.evaluate(
            "e => [getComputedStyle(e).display, getComputedStyle(e).position, getComputedStyle(e).fontSize]"
        )
        assert seen == ["block", "static", "15px"]

    async def test_a_frame_is_not_called_stale_where_its_script_may_not_ask(
        self, running, site, read, tmp_path
    ):
        running.answer = lambda _: json_response(feed_of(3))
        async with proxy_before(running, tmp_path, CORS_ORIGINS=site.url) as proxy:
            frame = f'<iframe src="{proxy.url}/embed/alice.test" title="Posts"></iframe>'
            reader = await read(site.put(page_of(proxy, frame + LONG)))
            await reader.shows()
            inside = reader.page.frame_locator("iframe")
            await inside.locator(".updated time[title]").wait_for()
            await reader.settled()
            assert await inside.locator(".feed[data-stale]").count() == 0
            assert reader.trouble == []

    async def test_on_paper_all_of_it_is_there(self, proxy, upstream, site, read):
        fixed = LONG.replace(">", ' style="display:block;height:20rem">', 1)
        reader = await read(site.put(page_of(proxy, f'{fixed}<p id="below">below</p>')))
        await reader.shows()
        await reader.page.emulate_media(media="print")
        last = "e => Math.round(e.getBoundingClientRect().bottom)"
        below = await reader.page.locator("#below").evaluate(TOP)
        assert 400 < await reader.page.locator(".foot").evaluate(last) <= below

    async def test_in_another_document_it_is_as_it_was(self, proxy, upstream, site, read):
        reader = await read(site.put(page_of(proxy, f"{LONG}<iframe src='/frame'></iframe>")))
        site.put("", path="/frame")
        await reader.page.reload()
        await reader.shows()
        await reader.page.evaluate("frames[0].document.body.append(document.querySelector('bluesky-feed'))")
        inside = reader.page.frame_locator("iframe")
        round_face = "e => getComputedStyle(e).borderRadius"
        assert await inside.locator(".face").first.evaluate(round_face) == "50%"
        await inside.locator("bluesky-feed").evaluate("e => e.setAttribute('limit', 2)")
        await inside.locator(".post").nth(2).wait_for(state="detached")
        assert await inside.locator(".face").first.evaluate(round_face) == "50%"
        await reader.page.evaluate("document.body.append(frames[0].document.querySelector('bluesky-feed'))")
        assert await reader.page.locator(".face").first.evaluate(round_face) == "50%"
        assert reader.trouble == []

    async def test_on_paper_it_is_dark_on_white(self, proxy, upstream, site, read):
        dark = LONG.replace(">", ' theme="dark">', 1)
        reader = await read(site.put(page_of(proxy, dark)), color_scheme="dark")
        await reader.shows()
        colour = "e => getComputedStyle(e).color"
        assert await reader.page.locator(".feed").evaluate(colour) == "rgb(234, 240, 246)"
        await reader.page.emulate_media(media="print", color_scheme="dark")
        assert await reader.page.locator(".feed").evaluate(colour) == "rgb(15, 23, 32)"

    @pytest.mark.parametrize(
        "actor",
        [
            *("@alice.test", " alice.test ", "ALICE.test", "\\u202aalice.test\\u202c", "\\ud800"),
            *("https://bsky.app/profile/alice.test", "bsky.app/profile/alice.test/?x", "at://alice.test"),
        ],
    )
    async def test_names_as_people_write_them(self, proxy, upstream, site, read, actor):
        reader = await read(site.put(page_of(proxy, "<div id=place></div>")))
        await reader.page.evaluate(
            "const feed = document.createElement('bluesky-feed');"
            f"feed.setAttribute('actor', '{actor}'); place.append(feed)"
        )
        await reader.shows(".resting" if "ud800" in actor else ".post")
        assert reader.trouble == []

    @pytest.mark.parametrize(
        "uri",
        [
            " at://did:plc:alice/app.bsky.feed.post/7 ",
            "https://bsky.app/profile/did:plc:alice/post/7?x#y",
            "http://www.BSKY.app/profile/did%3Aplc%3Aalice/post/7/",
            "bsky.app/profile/did:plc:alice/post/7",
        ],
    )
    async def test_addresses_of_posts_as_people_copy_them(self, proxy, upstream, site, read, uri):
        upstream.answer = lambda _: json_response({"thread": post_of(7, "the seventh")})
        reader = await read(site.put(page_of(proxy, f'<bluesky-post uri="{uri}"></bluesky-post>')))
        await reader.shows()
        assert [one.params["uri"] for one in upstream.requests] == [
            ["at://did:plc:alice/app.bsky.feed.post/7"]
        ]

    @pytest.mark.parametrize("kind", ["module", "inline"])
    async def test_a_script_that_cannot_know_its_proxy_says_so(self, proxy, upstream, site, read, kind):
        source = (await asyncio.to_thread(httpx.get, f"{proxy.url}/widget.js")).text
        script = (
            f'<script type="module" src="{proxy.url}/widget.js"></script>'
            if kind == "module"
            else f"<script>{source}</script>"
        )
        reader = await read(site.put("nothing yet"))
        said = []
        reader.page.on("console", lambda message: said.append(message.text))
        named = LONG.replace(">", f' proxy="{proxy.url}">', 1)
        await reader.page.goto(site.put(f"{script}{LONG}{named}"))
        await reader.page.locator(".post").nth(19).wait_for()
        await reader.shows(".resting")
        assert len([text for text in said if "needs proxy=" in text]) == 1
        assert reader.trouble == []

    async def test_written_into_a_frame_of_the_page_it_runs(self, proxy, upstream, site, read):
        source = (await asyncio.to_thread(httpx.get, f"{proxy.url}/widget.js")).text
        named = LONG.replace(">", f' proxy="{proxy.url}">', 1)
        frame = html.escape(f"<script>{source}</script>{named}")
        reader = await read(site.put(f'<iframe srcdoc="{frame}"></iframe>'))
        await reader.page.frame_locator("iframe").locator(".post").first.wait_for()
        assert reader.trouble == []

    async def test_a_copy_that_cannot_be_read_does_not_keep_the_others(self, proxy, upstream, site, read):
        many = "".join(LONG.replace("alice", f"a{number}") for number in range(12))
        reader = await read(site.put(page_of(proxy, "nothing yet")))
        await reader.page.evaluate("localStorage['bluesky-widget 1 broken'] = '{'")
        await reader.page.goto(site.put(page_of(proxy, many)))
        await reader.page.locator("bluesky-feed").nth(11).locator(".post").first.wait_for()
        await reader.settled()
        assert await reader.page.evaluate("localStorage.length") == 8
        assert "broken" not in str(await reader.page.evaluate("Object.keys(localStorage)"))


class TestClocks:
    async def test_a_clock_that_is_set_back_does_not_stop_it(self, proxy, upstream, site, read):
        reader = await read("about:blank", **PHONE)
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
        reader = await read("about:blank", **PHONE)
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

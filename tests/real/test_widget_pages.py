"""The elements in pages of every sort: languages, scripts, styles, frames, paper, names as people write."""

from __future__ import annotations

import asyncio
import html
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import pytest_asyncio
from real.widgets import LONG, NEVER_KEPT, feed_of, forget, page_of, post_of, proxy_before, texts

from harness.upstream import Upstream, json_response

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running():
    async with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def proxy(running, tmp_path_factory):
    """It keeps nothing: what the upstream has is what the page gets."""
    async with proxy_before(running, tmp_path_factory.mktemp("pages"), **NEVER_KEPT) as proxy:
        yield proxy


@pytest_asyncio.fixture(loop_scope="module")
async def upstream(running, proxy):
    """It has twenty posts, and the proxy has forgotten what the test before has taught it."""
    running.answer = lambda _: json_response(feed_of(20))
    await forget(proxy)
    running.requests.clear()
    return running


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
        now = datetime.now(UTC)
        post = post_of(1, "post")
        post["post"]["record"]["createdAt"] = (now - timedelta(hours=5)).isoformat()
        upstream.answer = lambda _: json_response({"feed": [post]})
        reader = await read("about:blank", locale="en-US")
        await reader.page.clock.set_fixed_time(now + timedelta(seconds=190))
        await reader.page.goto(site.put(page_of(proxy, LONG), html=f'lang="{language}"'))
        await reader.shows()
        updated = reader.page.locator(".updated time")
        await updated.evaluate(
            "(e, at) => { e.dateTime = at; document.dispatchEvent(new Event('visibilitychange')) }",
            now.isoformat(),
        )
        assert await reader.page.locator(".updated").inner_text() == words
        assert (await reader.page.locator(".when").first.inner_text()) == age

    async def test_a_page_within_a_component_has_the_language_of_the_page(self, proxy, upstream, site, read):
        component = f'<div><template shadowrootmode="open">{LONG}</template></div>'
        reader = await read(site.put(page_of(proxy, component), html='lang="fr"'))
        await reader.shows()
        assert "Voir sur Bluesky" in await reader.page.locator(".more").inner_text()


class TestLabels:
    async def test_what_each_of_them_does(self, proxy, upstream, site, read):
        labelled = {
            "porn": [{"val": "porn"}],
            "gore": [{"val": "gore"}],
            "warn": [{"val": "!warn"}],
            "taken back": [{"val": "porn", "neg": True}],
            "of another kind": [{"val": "spam"}],
            "hidden": [{"val": "!hide"}],
            "taken down": [{"val": "!takedown"}],
            "for members": [{"val": "!no-unauthenticated"}],
        }
        feed = {"feed": [post_of(n, text, labels=those) for n, (text, those) in enumerate(labelled.items())]}
        upstream.answer = lambda _: json_response(feed)
        scripted = await read(site.put(page_of(proxy, LONG)))
        await scripted.shows()
        fragment = await scripted.context.request.get(f"{proxy.url}/embed/alice.test?limit=30&fragment=1")
        rendered = await read(site.put(await fragment.text(), path="/rendered"))
        assert await scripted.tree() == await rendered.tree()
        for reader in (scripted, rendered):
            assert await reader.page.locator(".post").count() == 5
            assert await texts(reader, "summary") == [
                *["Adult content – show"] * 2,
                "Sensitive content – show",
            ]
            assert await texts(reader, ".body > .text") == ["taken back", "of another kind"]
            for covered in await reader.page.locator(".cover > .text").all():
                assert not await covered.is_visible()


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
        below = await reader.page.locator("#below").evaluate("e => e.getBoundingClientRect().top")
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

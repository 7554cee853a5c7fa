"""The widget in a browser, before the reference AppView: every kind of post, on the strictest of pages."""

from __future__ import annotations

import pytest
import pytest_asyncio
from real.widgets import WITH_REPLIES, element, fragment, script, texts

pytestmark = pytest.mark.asyncio(loop_scope="module")


SHOWN = ".posts > .post > .main > .by > .when"


def on_the_web(uri: str) -> str:
    did, _, key = uri.removeprefix("at://").split("/")
    return f"https://bsky.app/profile/{did}/post/{key}"


class TestKindsOfPosts:
    @pytest_asyncio.fixture(loop_scope="module")
    async def alice(self, proxy, site, read):
        reader = await read(site.put(script(proxy) + element(more=f'limit="12" {WITH_REPLIES}')))
        await reader.shows()
        return reader

    @pytest_asyncio.fixture(loop_scope="module")
    async def erin(self, proxy, site, read):
        reader = await read(site.put(script(proxy) + element("erin.test", more='limit="30"')))
        await reader.shows()
        return reader

    async def test_everything_of_alice(self, alice):
        post = alice.page.locator(".post")
        assert await post.count() == 12
        assert await texts(alice, ".head .name") == ["Alice"]
        assert await post.filter(has=alice.page.locator(".pinned")).count() == 1
        assert await texts(alice, ".post:first-child .text") == [
            "Grüße 👋🏽 an @bob.test: https://example.com/article?id=1 über #atproto"
        ]
        assert "Reposted by Alice" in await texts(alice, ".note")
        assert await texts(alice, ".reply") == ["Reply to Bob"]
        assert await texts(alice, "summary") == ["Adult content – show"]
        assert await texts(alice, ".quote .text") == ["hello from bob"] * 2
        assert await texts(alice, ".card .host") == ["example.com"]
        assert await texts(alice, ".card .title") == ["An example article"]

    @pytest.mark.parametrize("actor", ["alice.test", "bob.test", "carol.test", "erin.test"])
    async def test_none_is_left_out(self, proxy, network, direct, site, read, actor):
        question = {"actor": actor, "limit": 100, "filter": "posts_with_replies", "includePins": True}
        feed = direct.get("/xrpc/app.bsky.feed.getAuthorFeed", params=question).json()["feed"]
        reader = await read(site.put(script(proxy) + element(actor, f'limit="100" {WITH_REPLIES}')))
        await reader.shows(".feed:not([aria-busy])")
        shown = await reader.page.locator(SHOWN).evaluate_all("all => all.map(link => link.href)")
        # But what a member keeps to members.
        assert shown == [
            on_the_web(one["post"]["uri"])
            for one in feed
            if one["post"]["author"]["did"] != network.did("dan")
        ]

    async def test_facets_are_cut_at_bytes(self, alice, network):
        links = alice.page.locator(".post:first-child .text a")
        assert await links.all_inner_texts() == ["@bob.test", "https://example.com/article?id=1", "#atproto"]
        assert [await link.get_attribute("href") for link in await links.all()] == [
            f"https://bsky.app/profile/{network.did('bob')}",
            "https://example.com/article?id=1",
            "https://bsky.app/hashtag/atproto",
        ]

    async def test_pictures_have_their_words_and_their_room(self, alice):
        pictures = alice.page.locator(".two img")
        assert [await picture.get_attribute("alt") for picture in await pictures.all()] == [
            "a red rectangle",
            "Picture",
        ]
        single = alice.page.locator(".one img")
        await single.scroll_into_view_if_needed()
        box = await single.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(320 / 200, rel=0.02)

    async def test_every_picture_comes(self, alice):
        assert await alice.page.locator("img").count() > 15
        assert await alice.pictures() == []

    async def test_the_rarer_kinds(self, erin):
        assert await erin.page.locator(".three img").count() == 3
        assert await erin.page.locator(".many img").count() == 4
        video = erin.page.locator("a.video")
        assert await video.get_attribute("aria-label") == "Video: a moving picture"
        assert await video.locator("img.poster").get_attribute("width") == "640"
        gone = await texts(erin, ".quote.gone")
        assert gone == ["Only for readers who are signed in to Bluesky.", "This post is not available."]
        # A gallery is nothing that the reference AppView knows.
        cards = ["View on Bluesky", "Carol", "Demo pack", "Demo list", "Demo feed", "Bare"]
        assert await texts(erin, ".card .title") == cards
        assert "Reply to إيرين — Erin" in await texts(erin, ".reply")
        assert "one line\n\nand another,\nas poems have them" in await texts(erin, ".text")

    async def test_arabic_goes_from_right_to_left(self, erin):
        text = erin.page.locator(".text[lang=ar]")
        assert await text.evaluate("element => getComputedStyle(element).direction") == "rtl"

    async def test_adult_content_is_behind_a_click(self, erin):
        covered = erin.page.locator(".cover", has=erin.page.locator("img"))
        picture = covered.locator("img")
        assert not await picture.is_visible()
        await covered.locator("summary").press("Enter")
        assert await picture.is_visible()

    async def test_what_members_keep_to_themselves_is_not_shown(self, proxy, site, read, erin):
        assert "only for people" not in str(await erin.tree())
        assert "and the second" in str(await erin.tree())
        dan = await read(site.put(script(proxy) + element("dan.test"), path="/dan"))
        await dan.shows(".resting")
        assert await texts(dan, ".resting") == ["Only for readers who are signed in to Bluesky."]
        assert "login" not in str(await dan.tree())

    async def test_nobody_is_a_friendly_line_and_a_link(self, proxy, site, read):
        reader = await read(site.put(script(proxy) + element("nobody.test")))
        await reader.shows(".resting")
        assert await texts(reader, ".resting") == ["Nothing to show here at the moment."]
        assert (
            await reader.page.locator(".more").get_attribute("href") == "https://bsky.app/profile/nobody.test"
        )

    async def test_custom_feeds_and_lists(self, proxy, network, site, read):
        feeds = "".join(
            f'<bluesky-feed feed="{network.uri(name)}"></bluesky-feed>' for name in ("feedgen", "list")
        )
        reader = await read(site.put(script(proxy) + feeds))
        for number in (0, 1):
            await reader.page.locator("bluesky-feed").nth(number).locator(".post").first.wait_for()
        assert await reader.page.locator("bluesky-feed").first.locator(".post").count() == 3

    async def test_a_profile_and_a_post(self, proxy, network, site, read):
        did, key = network.did("alice"), network.uri("facets").rpartition("/")[2]
        posts = [network.uri("facets"), f"https://bsky.app/profile/{did}/post/{key}"]
        body = '<bluesky-profile actor="alice.test"></bluesky-profile>'
        body += "".join(f'<bluesky-post uri="{uri}"></bluesky-post>' for uri in posts)
        reader = await read(site.put(script(proxy) + body))
        await reader.shows(".profile")
        assert await texts(reader, ".profile .name") == ["Alice"]
        assert "newsroom" in (await texts(reader, ".profile .text"))[0]
        assert (await texts(reader, ".profile .counts span"))[0] == "Followers 1"
        for number in (0, 1):
            post = reader.page.locator("bluesky-post").nth(number).locator(".post")
            await post.wait_for()
            assert "Grüße" in await post.inner_text()
        dan = await read(
            site.put(script(proxy) + '<bluesky-profile actor="dan.test"></bluesky-profile>', path="/d")
        )
        await dan.shows(".resting")
        assert "Members only" not in str(await dan.tree("bluesky-profile"))


class TestStrictPages:
    async def test_it_works_where_nothing_inline_may(self, proxy, network, site, read):
        site.policy = (
            f"default-src 'none'; script-src {proxy.url}; connect-src {proxy.url}; style-src {proxy.url}; "
            "img-src http://localhost:*; require-trusted-types-for 'script'"
        )
        reader = await read(site.put(element(), head=script(proxy)))
        await reader.shows()
        await reader.settled()
        assert reader.trouble == []
        assert (
            await reader.page.locator(".face").first.evaluate("e => getComputedStyle(e).borderRadius")
            == "50%"
        )

    async def test_no_request_says_where_it_comes_from(self, proxy, proxied, site, read):
        seen = []
        reader = await read(site.put("<p>nothing yet</p>"))
        reader.page.on("request", lambda request: seen.append(request))  # noqa: PLW0108 - it wants a function
        body = element(more='limit="30"') + await fragment(proxied)
        await reader.page.goto(site.put(body, head=script(proxy), path="/secret"))
        await reader.shows()
        await reader.settled()
        foreign = [
            request for request in seen if "widget.js" not in request.url and site.url not in request.url
        ]
        assert len(foreign) > 3
        assert [request.url for request in foreign if request.url.endswith(".css")]
        assert [request.url for request in foreign if "referer" in await request.all_headers()] == []

    async def test_links_say_nothing_either(self, proxy, site, read):
        reader = await read(site.put(element(more=WITH_REPLIES), head=script(proxy)))
        await reader.shows()
        links = await reader.page.locator("a").evaluate_all(
            "links => links.map(a => [a.protocol, a.rel.includes('noopener'), a.referrerPolicy, a.target])"
        )
        assert len(links) > 20
        assert {tuple(link) for link in links} == {("https:", True, "no-referrer", "_blank")} | {
            ("http:", True, "no-referrer", "_blank")
        }

    async def test_a_pinned_script_passes_its_integrity_check(self, proxy, proxied, site, read):
        reader = await read(f"{proxy.url}/?actor=alice.test")
        line = await reader.page.locator("#pinned").inner_text()
        pinned = await read(site.put(line))
        await pinned.shows()
        assert "integrity=" in line
        assert "/widget-" in line


class TestFirstPage:
    async def test_try_an_account_see_the_headers_copy_the_line(self, proxy, site, read):
        reader = await read(
            f"{proxy.url}/?actor=alice.test", permissions=["clipboard-read", "clipboard-write"]
        )
        await reader.shows()
        await reader.page.fill("#actor", "@bob.test")
        await reader.page.press("#actor", "Enter")
        await reader.page.locator(".head .name", has_text="Bob").wait_for()
        await reader.page.locator("th", has_text="Cache-Status").wait_for()
        assert "feedproxy; " in await reader.page.locator("tr", has_text="Cache-Status").inner_text()
        await reader.page.locator("button[data-copies=line]").click()
        await reader.page.locator("#copied", has_text="Copied").wait_for()
        assert await texts(reader, "button[data-copies]") == ["Copied", *["Copy"] * 4]
        line = await reader.page.evaluate("navigator.clipboard.readText()")
        assert line == (
            f'<script src="{proxy.url}/widget.js" defer></script>'
            '<bluesky-feed actor="bob.test" limit="10" style="display:block;min-height:100vh"></bluesky-feed>'
        )
        assert reader.trouble == []
        copied = await read(site.put(line))
        await copied.shows()

    async def test_what_people_paste_is_understood(self, proxy, network, site, read):
        reader = await read(f"{proxy.url}/")
        feed = network.uri("feedgen")
        did, key = feed.split("/")[2], feed.rpartition("/")[2]
        pasted = {
            " @ALICE.test ": 'actor="alice.test"',
            "https://bsky.app/profile/alice.test": 'actor="alice.test"',
            "bsky.app/profile/alice.test/?x=1": 'actor="alice.test"',
            "\u202aalice.test\u202c\u200b": 'actor="alice.test"',
            feed: f'feed="{feed}"',
            f"https://bsky.app/profile/{did}/feed/{key}": f'feed="{feed}"',
        }
        for text, expected in pasted.items():
            await reader.page.fill("#actor", "nobody.test")
            await reader.page.press("#actor", "Enter")
            await reader.shows(".resting")
            await reader.page.locator("tr", has_text="Message").get_by_text("not found").wait_for()
            await reader.page.fill("#actor", text)
            await reader.page.press("#actor", "Enter")
            await reader.shows()
            for name in ("line", "pinned"):
                assert f"<bluesky-feed {expected} limit" in await reader.page.locator(f"#{name}").inner_text()
        frame = await reader.page.locator("#frame").inner_text()
        framed = await read(site.put(frame))
        await framed.page.frame_locator("iframe").locator(".post").first.wait_for()

    async def test_behind_a_tls_server_the_lines_are_those_of_the_browser(self, proxy, read):
        reader = await read("about:blank")

        async def forwarded(route):
            answer = await route.fetch(url=route.request.url.replace("https://feeds.example", proxy.url))
            await route.fulfill(response=answer)

        await reader.page.route("https://feeds.example/**", forwarded)
        await reader.page.goto("https://feeds.example/?actor=alice.test")
        await reader.shows()
        for name in ("line", "pinned", "frame", "profile", "post"):
            assert '="https://feeds.example/' in await reader.page.locator(f"#{name}").inner_text()

    async def test_what_is_typed_stays_text(self, proxy, read):
        reader = await read(f"{proxy.url}/?actor=%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E")
        await reader.shows(".resting")
        assert "&#34;&#62;&#60;img" in await reader.page.locator("#line").inner_text()
        assert [text for text in reader.trouble if "dialog" in text] == []

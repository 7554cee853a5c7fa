"""The widget in a browser, before the reference AppView: every kind of post, in every dress."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
MOST_SHIFT = 0.02
WITH_REPLIES = 'filter="posts_with_replies"'
DRESSES = {
    "light-desktop": {"color_scheme": "light", **DESKTOP},
    "light-phone": {"color_scheme": "light", **PHONE},
    "dark-desktop": {"color_scheme": "dark", **DESKTOP},
    "dark-phone": {"color_scheme": "dark", **PHONE},
    "few-colours": {"forced_colors": "active", **PHONE},
}
# Whoever wants to look at what the tests see names a directory.
PICTURES = os.environ.get("WIDGET_PICTURES")


def script(proxy) -> str:
    return f'<script src="{proxy.url}/widget.js" defer></script>'


def element(actor: str = "alice.test", more: str = "") -> str:
    return f'<bluesky-feed actor="{actor}" {more}></bluesky-feed>'


def words(count: int = 150) -> str:
    return f"<p>{'Some words of the page itself. ' * count}</p>"


async def fragment(proxied, actor: str = "alice.test", **options: object) -> str:
    answer = proxied.get(f"/embed/{actor}", params={"fragment": 1, **options})
    assert answer.status_code == 200
    return answer.text


async def texts(reader, selector: str) -> list[str]:
    return [text.strip() for text in await reader.page.locator(selector).all_inner_texts()]


async def look(read, url: str, name: str, **dress: object) -> None:
    """Have axe look at a page when everything is there; and take a picture, if somebody wants it."""
    reader = await read(url, **dress)
    await reader.page.locator(".feed:not([aria-busy])").last.wait_for()
    await reader.settled()
    if PICTURES:
        await reader.pictures()
        await reader.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)
    assert await reader.axe() == []


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


class TestServerRendered:
    @pytest.mark.parametrize("actor", ["alice.test", "erin.test"])
    async def test_the_server_renders_what_the_script_renders(self, proxy, proxied, site, read, actor):
        rendered = await read(site.put(await fragment(proxied, actor, limit=30), path="/rendered"))
        scripted = await read(site.put(script(proxy) + element(actor, 'limit="30"'), path="/scripted"))
        await scripted.shows()
        assert await scripted.tree() == await rendered.tree()

    async def test_a_fragment_is_there_without_the_script(self, proxied, site, read):
        reader = await read(site.put(await fragment(proxied)), java_script_enabled=False)
        await reader.shows()
        assert (
            await reader.page.locator(".face").first.evaluate("e => getComputedStyle(e).borderRadius")
            == "50%"
        )

    async def test_the_script_takes_over_without_a_move(self, proxy, proxied, site, read):
        body = words(40) + await fragment(proxied, limit=5) + words()
        reader = await read(site.put(body, head=script(proxy)), **DESKTOP)
        await reader.page.locator(".updated time[title]").wait_for()
        assert await reader.shifts() < MOST_SHIFT
        assert (
            await reader.page.locator("bluesky-feed").evaluate("e => e.shadowRoot.querySelector('link')")
            is None
        )

    async def test_the_document_for_frames(self, proxy, site, read):
        source = f"{proxy.url}/embed/alice.test?theme=dark"
        frame = f'<iframe src="{source}" title="Posts" width="600" height="700"></iframe>'
        reader = await read(site.put(frame + words()), **DESKTOP)
        inside = reader.page.frame_locator("iframe")
        await inside.locator(".updated time[title]").wait_for()
        assert await inside.locator(".post").count() == 10
        assert reader.trouble == []
        assert await reader.shifts() < MOST_SHIFT

    async def test_markup_put_in_by_a_script_of_the_page_is_taken_as_well(self, proxy, proxied, site, read):
        head = '<script src="/late.js" defer></script>'
        reader = await read(site.put('<div id="place"></div>', head=head))
        await reader.page.evaluate("(html) => { place.innerHTML = html }", await fragment(proxied))
        await reader.page.add_script_tag(url=f"{proxy.url}/widget.js")
        await reader.shows()


class TestSteadiness:
    @pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
    @pytest.mark.parametrize(
        "kind", ["line", "short", "fixed", "rule", "fragment", "short fragment", "frame"]
    )
    async def test_nothing_moves_below_it(self, proxy, proxied, site, read, kind, size):
        # A page paints before a deferred script runs: what follows the bare element needs the page's reserve.
        room, bare = 'style="display:block;min-height:100vh"', "bluesky-feed:not(:defined)"
        head = script(proxy)
        match kind:
            case "line":
                widget = element(more=f'limit="10" {room}')
            case "short":
                widget = element(more=f'limit="2" {room}')
            case "fixed":
                widget = element(more='limit="10" style="display:block;height:24rem"')
            case "rule":
                head += f"<style>{bare}{{display:block;min-height:100vh}}</style>"
                widget = element(more='limit="10"')
            case "frame":
                widget = f'<iframe src="{proxy.url}/embed/alice.test" title="Posts" height="600"></iframe>'
            case _:
                widget = await fragment(proxied, limit=2 if "short" in kind else 10)
        reader = await read(site.put(words(5) + widget + words(), head=head), **size)
        inside = reader.page.frame_locator("iframe") if kind == "frame" else reader.page
        for _ in ("the first visit", "the second, with a copy in the browser"):
            await inside.locator(".updated time[title]").wait_for()
            await reader.pictures()
            assert await reader.shifts() < MOST_SHIFT
            await reader.page.reload()

    async def test_nothing_moves_on_the_first_page(self, proxy, read):
        for size in (PHONE, DESKTOP):
            reader = await read(f"{proxy.url}/?actor=alice.test", **size)
            await reader.shows()
            await reader.page.locator("th", has_text="ETag").wait_for()
            assert await reader.shifts() < MOST_SHIFT

    async def test_in_a_fixed_height_it_scrolls(self, proxy, site, read):
        reader = await read(
            site.put(element(more='style="display:block;height:20rem"'), head=script(proxy)), **DESKTOP
        )
        await reader.shows()
        sides = "e => [e.offsetHeight, e.scrollHeight > 400, e.scrollWidth - e.clientWidth]"
        assert await reader.page.locator(".feed").evaluate(sides) == [320, True, 0]
        await reader.page.emulate_media(media="print")
        assert (await reader.page.locator(".feed").evaluate(sides))[0] > 400

    async def test_nothing_moves_beside_it_and_above(self, proxy, site, read):
        style = "<style>main{display:flex}main>*{flex:1}</style>"
        columns = f"<div>{words()}</div>{element()}"
        reader = await read(site.put(columns, head=style + script(proxy)), **DESKTOP)
        await reader.shows()
        assert await reader.shifts() < MOST_SHIFT

    async def test_pictures_keep_their_room_while_one_scrolls(self, proxy, site, read):
        reader = await read(site.put(element("erin.test", 'limit="30"'), head=script(proxy)), **PHONE)
        await reader.shows()
        for post in await reader.page.locator(".post").all():
            await post.scroll_into_view_if_needed()
        assert await reader.shifts() < MOST_SHIFT

    async def test_what_moves_would_be_noticed(self, site, read):
        reader = await read(site.put(f"<div id='growing'></div>{words()}"), **DESKTOP)
        await reader.settled()
        await reader.page.evaluate("growing.style.height = '300px'")
        assert await reader.shifts() > MOST_SHIFT


class TestDress:
    @pytest.mark.parametrize("dress", DRESSES)
    @pytest.mark.parametrize("actor", ["alice.test", "erin.test"])
    async def test_axe_finds_nothing(self, proxy, site, read, actor, dress):
        style = "<style>:root{font:16px sans-serif;color-scheme:light dark}</style>"
        body = element(actor, f'limit="14" {WITH_REPLIES}')
        await look(read, site.put(body, head=style + script(proxy)), f"{actor}-{dress}", **DRESSES[dress])

    @pytest.mark.parametrize("dress", DRESSES)
    @pytest.mark.parametrize("name", ["elements", "from right to left", "embed", "nobody", "first page"])
    async def test_axe_finds_nothing_on_any_page_in_any_dress(self, proxy, network, site, read, name, dress):
        body = '<bluesky-profile actor="alice.test"></bluesky-profile>'
        body += f'<bluesky-post uri="{network.uri("quoteWithMedia")}"></bluesky-post>'
        body += element("nobody.test") + element("dan.test") + element(more='style="height:20rem"')
        style = "<style>:root{color-scheme:light dark}</style>"
        match name:
            case "elements":
                url = site.put(body, head=style + script(proxy))
            case "from right to left":
                url = site.put(body, head=style + script(proxy), html='lang="ar" dir="rtl"')
            case "first page":
                url = f"{proxy.url}/?actor=alice.test"
            case _:
                actor = "erin.test" if name == "embed" else "nobody.test"
                url = f"{proxy.url}/embed/{actor}?limit=20"
        await look(read, url, f"{name}-{dress}", **DRESSES[dress])

    async def test_a_theme_is_the_pages_choice(self, proxy, site, read):
        style = (
            "<style>bluesky-feed{--bluesky-background:rgb(1,2,3)}"
            "bluesky-feed::part(name){color:rgb(4,5,6)}</style>"
        )
        reader = await read(
            site.put(element(more='theme="light"'), head=style + script(proxy)), color_scheme="dark"
        )
        await reader.shows()
        style_of = "(e, name) => getComputedStyle(e)[name]"
        assert await reader.page.locator(".feed").evaluate(style_of, "backgroundColor") == "rgb(1, 2, 3)"
        assert await reader.page.locator(".name").first.evaluate(style_of, "color") == "rgb(4, 5, 6)"
        assert await reader.page.locator(".feed").evaluate(style_of, "color") == "rgb(15, 23, 32)"

    async def test_in_german_and_from_right_to_left(self, proxy, site, read):
        german = await read(site.put(element(), head=script(proxy), html='lang="de"'))
        await german.shows()
        assert (await texts(german, ".updated"))[0].startswith("aktualisiert ")
        assert "Angeheftet" in await texts(german, ".note")
        arabic = await read(
            site.put(element(), head=script(proxy), html='lang="ar" dir="rtl"', path="/ar"), **PHONE
        )
        await arabic.shows()
        face = await arabic.page.locator(".post .face").first.bounding_box()
        name = await arabic.page.locator(".post .name").first.bounding_box()
        assert face["x"] > name["x"]
        if PICTURES:
            await arabic.page.screenshot(path=Path(PICTURES) / "rtl.png", full_page=True)

    async def test_the_keyboard_walks_from_post_to_post(self, proxy, site, read):
        reader = await read(site.put(element(), head=script(proxy)))
        await reader.shows()
        await reader.page.locator(".post").first.focus()
        focused = (
            "document.querySelector('bluesky-feed').shadowRoot.activeElement.getAttribute('aria-posinset')"
        )
        places = []
        for key in ("PageDown", "PageDown", "PageUp"):
            await reader.page.keyboard.press(key)
            places.append(await reader.page.evaluate(focused))
        assert places == ["2", "3", "2"]

    async def test_who_wants_no_motion_sees_none(self, proxy, site, read):
        reader = await read(site.put("<p>nothing yet</p>", head=script(proxy)), reduced_motion="reduce")
        bone = await reader.page.evaluate(
            "() => { const feed = document.createElement('bluesky-feed'); "
            "feed.setAttribute('actor', 'bob.test'); document.body.append(feed);"
            " return getComputedStyle(feed.shadowRoot.querySelector('.bone')).animationName }"
        )
        assert bone == "none"


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
        line = await reader.page.evaluate("navigator.clipboard.readText()")
        assert line == (
            f'<script src="{proxy.url}/widget.js" defer></script>'
            '<bluesky-feed actor="bob.test" limit="10" style="display:block;min-height:100vh"></bluesky-feed>'
        )
        assert reader.trouble == []
        copied = await read(site.put(line))
        await copied.shows()

    async def test_what_is_typed_stays_text(self, proxy, read):
        reader = await read(f"{proxy.url}/?actor=%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E")
        await reader.shows(".resting")
        assert "&#34;&#62;&#60;img" in await reader.page.locator("#line").inner_text()
        assert [text for text in reader.trouble if "dialog" in text] == []

"""Nothing on the page moves, whoever renders the feed: the script, or the server before it."""

from __future__ import annotations

import pytest
from real.harness import plain_client
from real.kinds import png
from real.widgets import (
    DESKTOP,
    MOST_SHIFT,
    PHONE,
    element,
    fragment,
    post_of,
    proxy_before,
    script,
    words,
)

from harness.upstream import Upstream, json_response

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Ten times as wide as high.
WIDE = png(400, 40, 9)


def claiming(src: str) -> dict[str, object]:
    """Posts with a picture that is said to be twice as wide as high."""
    one = {"thumb": src, "fullsize": src, "alt": "x", "aspectRatio": {"width": 400, "height": 200}}
    embed = {"$type": "app.bsky.embed.images#view", "images": [one]}
    return {"feed": [post_of(number, f"post {number}", embed=embed) for number in range(4)]}


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

    @pytest.mark.parametrize("how", ["", "defer", "async", "module"])
    async def test_however_the_script_is_loaded(self, proxy, proxied, site, read, how):
        kind = 'type="module"' if how == "module" else how
        head = f'<script src="{proxy.url}/widget.js" {kind}></script>'
        body = (await fragment(proxied, limit=5)).replace(
            "<bluesky-feed", f'<bluesky-feed proxy="{proxy.url}"'
        )
        reader = await read(site.put(words(40) + body, head=head))
        await reader.page.locator(".updated time[title]").wait_for()
        await reader.settled()
        assert await reader.page.locator(".feed").count() == 1
        assert await reader.page.locator(".post").count() == 5
        assert await reader.page.locator("bluesky-feed > template").count() == 0
        assert reader.trouble == []

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

    @pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
    @pytest.mark.parametrize("name", ["profile", "post"])
    async def test_nothing_moves_below_the_other_elements(self, proxy, network, site, read, name, size):
        # The lines that the first page offers.
        reader = await read(f"{proxy.url}/?actor=alice.test", **size)
        await reader.shows()
        line = (await reader.page.locator(f"#{name}").inner_text()).replace(
            "at://…", network.uri("quoteWithMedia")
        )
        reader = await read(site.put(words(5) + line + words()), **size)
        for _ in ("the first visit", "the second, with a copy in the browser"):
            await reader.page.locator(".updated time[title]").wait_for()
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

    @pytest.mark.parametrize("kind", ["script", "frame", "fragment", "fragment and script"])
    async def test_a_picture_that_is_not_as_it_was_said_to_be_moves_nothing(self, site, read, tmp_path, kind):
        async with Upstream() as upstream:
            site.pages["/wide.png"] = WIDE
            upstream.answer = lambda _: json_response(claiming(f"{site.url}/wide.png"))
            async with proxy_before(upstream, tmp_path) as proxy:
                with plain_client(proxy.url) as client:
                    body = element(more='style="display:block;min-height:100vh"')
                    if kind == "frame":
                        url = f"{proxy.url}/embed/alice.test"
                    elif "fragment" in kind:
                        body = await fragment(client)
                    if kind != "frame":
                        head = "" if kind == "fragment" else script(proxy)
                        url = site.put(body + words(), head=head)
                reader = await read(url, **DESKTOP)
                await reader.shows()
                await reader.settled()
                assert await reader.pictures() == []
                assert await reader.shifts() < MOST_SHIFT
                box = await reader.page.locator(".one img").first.bounding_box()
                assert box["height"] == pytest.approx(box["width"] / 2, rel=0.02)

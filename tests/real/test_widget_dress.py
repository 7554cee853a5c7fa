"""The widget for every reader: light and dark, wide and narrow, in their language, with a keyboard."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from real.widgets import DESKTOP, PHONE, WITH_REPLIES, element, script, texts

pytestmark = pytest.mark.asyncio(loop_scope="module")

DRESSES = {
    "light-desktop": {"color_scheme": "light", **DESKTOP},
    "light-phone": {"color_scheme": "light", **PHONE},
    "dark-desktop": {"color_scheme": "dark", **DESKTOP},
    "dark-phone": {"color_scheme": "dark", **PHONE},
    "few-colours": {"forced_colors": "active", **PHONE},
}
# Whoever wants to look at what the tests see names a directory.
PICTURES = os.environ.get("WIDGET_PICTURES")


async def look(read, url: str, name: str, **dress: object) -> None:
    """Have axe look at a page when everything is there; and take a picture, if somebody wants it."""
    reader = await read(url, **dress)
    await reader.page.locator(".feed:not([aria-busy])").last.wait_for()
    await reader.settled()
    if PICTURES:
        await reader.pictures()
        await reader.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)
    assert await reader.axe() == []


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

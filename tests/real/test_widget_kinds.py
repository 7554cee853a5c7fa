"""Every kind of thing that a post may carry, by the lexicons: shown by the script and by the server alike."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
import pytest_asyncio
from real.browser import MODULES
from real.harness import Proxy
from real.kinds import Kinds

from harness.upstream import Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEXICONS = MODULES / "@atproto" / "api" / "dist" / "client" / "types" / "app" / "bsky" / "embed"
DRESSES = {"small phone": (320, "light"), "desktop": (1280, "dark")}
PICTURES = os.environ.get("WIDGET_PICTURES")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream():
    async with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def kinds(upstream):
    kinds = Kinds(upstream.url)
    upstream.answer = kinds.answer
    return kinds


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def proxy(kinds, upstream, tmp_path_factory):
    proxy = Proxy(upstream.url, tmp_path_factory.mktemp("kinds"), {})
    await asyncio.to_thread(proxy.start)
    yield proxy
    await asyncio.to_thread(proxy.stop)


def page_of(proxy) -> str:
    element = '<bluesky-feed actor="alice.example.com" limit="100"></bluesky-feed>'
    return f'<script src="{proxy.url}/widget.js" defer></script>{element}'


async def test_none_that_the_lexicons_know_is_missing(kinds):
    known = str(kinds.feed)
    for lexicon in LEXICONS.glob("*.d.ts"):
        source = lexicon.read_text(encoding="utf-8")
        views = re.findall(r"\$type\?: '(app\.bsky\.embed\.\w+#view\w*)'", source)
        assert views or lexicon.name == "defs.d.ts"
        for view in views:
            # Those of single images and cards are said nowhere, being the only ones in their places.
            assert view in known or view.endswith(("#viewImage", "#viewExternal")), view
    record = (LEXICONS / "record.d.ts").read_text(encoding="utf-8")
    for view in re.search(r"record: (\$Typed.*)", record)[1].split("|")[:-1]:
        name = re.search(r"\.?(\w+)>", view)[1]
        assert f"#{name[0].lower()}{name[1:]}'" in known, view


async def test_each_is_shown(proxy, kinds, site, read):
    reader = await read(site.put(page_of(proxy)), viewport={"width": 1280, "height": 900})
    await reader.shows()
    assert await reader.page.locator(".post").count() == len(kinds.feed)
    assert await reader.pictures() == []
    shown = {}
    for post in await reader.page.locator(".post").all():
        text = await post.locator(".main > .body > .text").inner_text()
        shown[text] = {
            name: await post.locator(f".main > .body > {name}, .quote {name}").count()
            for name in ("img", ".pics img", ".card", ".video", ".quote", ".gone", ".quote .pics img")
        }
    for count in range(1, 11):
        for kind in ("pictures", "pictures in a gallery"):
            if (text := f"{count} {kind}") in shown:
                assert shown[text][".pics img"] == count
    for place in ("{}", "{} and a quote", "a quote with {}"):
        assert shown[place.format("a gallery")][".pics img"] == 5
        assert shown[place.format("a card")][".card"] == 1
        for video in ("a video", "a tall video", "a moving picture"):
            assert shown[place.format(video)][".video"] == 1
    for name in kinds.media():
        assert shown[f"a quote with {name}"][".quote"] == 1
        assert shown[f"{name} and a quote"][".quote"] == 1
    for gone in ("not found", "blocked", "detached"):
        assert shown[gone][".gone"] == 1
    titles = {
        name: await reader.page.locator(".post", has=reader.page.get_by_text(name, exact=True))
        .locator(".card .title")
        .inner_text()
        for name in ("a feed", "a list", "a starter pack", "a labeler", "a poll")
    }
    assert titles == {
        "a feed": "A custom feed",
        "a list": "A list",
        "a starter pack": "A starter pack",
        "a labeler": "Alice Example",
        "a poll": "View on Bluesky",
    }


@pytest.mark.parametrize("dress", DRESSES)
async def test_nothing_is_wider_than_the_page_and_axe_finds_nothing(proxy, site, read, dress):
    style = "<style>:root{font:16px sans-serif;color-scheme:light dark}</style>"
    width, scheme = DRESSES[dress]
    size = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    reader = await read(site.put(style + page_of(proxy)), **size)
    await reader.shows()
    await reader.pictures()
    await reader.settled()
    if PICTURES:
        await reader.page.screenshot(path=Path(PICTURES) / f"kinds-{width}-{scheme}.png", full_page=True)
    wide = "all => all.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)"
    assert await reader.page.locator("bluesky-feed *").evaluate_all(wide) == []
    assert await reader.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert await reader.axe() == []


async def test_the_server_renders_what_the_script_renders(proxy, site, read):
    scripted = await read(site.put(page_of(proxy), path="/scripted"))
    await scripted.shows()
    answer = await scripted.context.request.get(f"{proxy.url}/embed/alice.example.com?limit=100&fragment=1")
    rendered = await read(site.put(await answer.text(), path="/rendered"))
    assert await scripted.tree() == await rendered.tree()

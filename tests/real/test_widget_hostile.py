"""Two hundred records of people who mean ill: nothing runs, nothing breaks, the rest of the feed shows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from real.harness import Proxy
from real.widgets import proxy_before

from harness.upstream import Upstream, json_response

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPTS = (
    "<script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    '"><svg onload=window.ran=1>',
    "' onclick='window.ran=1",
    "javascript:window.ran=1",
    "JaVaScRiPt:window.ran=1//https://example.com",
    "data:text/html,<script>parent.ran=1</script>",
    "</template></bluesky-feed><script>window.ran=1</script>",
    "{{7*7}}{% raw %}",
    'https://example.com/"onmouseover=window.ran=1',
)
TRICKS = (
    "\u202egnp.exe \u202d\u2066\u2067 \u200f left open",
    "Z\u0361\u035c\u0321\u0489\u0340" * 300,
    "\ufffd control \x00\x01\x07\x1b[31m",
    "\n" * 2000 + "far below",
    "x" * 9_000,
    "👩‍👩‍👧‍👦" * 500,
    "\ufeff\u200b\u00ad",
)
ODD = (None, 0, -1, 1e300, True, "", [], {}, [[]], [None], {"$type": None}, {"length": 3}, "[object Object]")
TO_SCRIPT = {"$type": "app.bsky.richtext.facet#link", "uri": SCRIPTS[4]}
TO_EXAMPLE = {"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/"}
BROKEN_FACETS = (
    [{"index": {"byteStart": start, "byteEnd": end}} for start, end in ((0, 9**9), (-5, 3), (2, 1), (1, 2))],
    [{"index": {"byteStart": 0, "byteEnd": 4}, "features": [TO_SCRIPT]}],
    [{"index": {"byteStart": 1, "byteEnd": 4}, "features": ODD}] * 50,
    [{"index": odd, "features": odd} for odd in ODD],
    # Two that overlap, both with a good address.
    [{"index": {"byteStart": at, "byteEnd": at + 4}, "features": [TO_EXAMPLE]} for at in (2, 0)],
    *ODD,
)
FIELDS = ("text", "facets", "langs", "createdAt", "reply", "labels", "embed", "$type", "tags")
DID = "did:plc:mallory"


def address(key: object) -> str:
    return f"at://{DID}/app.bsky.feed.post/{key}"


def post(number: int, record: object, **more: object) -> dict[str, object]:
    author = {"did": DID, "handle": "mallory.test", "displayName": "Mallory"}
    return {"post": {"uri": address(number), "author": author, "record": record} | more}


def image(value: object) -> dict[str, object]:
    one = {"thumb": value, "fullsize": value, "alt": value, "aspectRatio": {"width": value, "height": 3}}
    return {"$type": "app.bsky.embed.images#view", "images": [one, value]}


def everywhere(number: int, value: object) -> list[dict[str, object]]:
    """`value` in every field there is, by turns."""
    external = {"uri": value, "title": value, "description": value, "thumb": value}
    author = {"did": DID, "handle": value, "displayName": value, "avatar": value, "labels": value}
    quoted = {"$type": "app.bsky.embed.record#viewRecord", "uri": address("q"), "author": author}
    quoted |= {"value": {"text": value}, "embeds": [image(value)]}
    video = {"thumbnail": value, "alt": value, "aspectRatio": value, "playlist": value}
    embeds = (
        image(value),
        {"$type": "app.bsky.embed.external#view", "external": external | {"uri": "https://example.com/"}},
        {"$type": "app.bsky.embed.external#view", "external": external},
        {"$type": "app.bsky.embed.video#view", **video},
        {"$type": "app.bsky.embed.record#view", "record": quoted},
        {"$type": "app.bsky.embed.recordWithMedia#view", "media": value, "record": {"record": value}},
        {"$type": "app.bsky.embed.gallery#view", "items": [{"thumbnail": value, "alt": value}, value]},
    )
    record = dict.fromkeys(FIELDS, value)
    reason = {"$type": "app.bsky.feed.defs#reasonRepost", "by": author}
    reply = {"parent": {"author": author, "uri": address("p")}}
    return [
        post(number, record, embed=embeds[number // 2 % len(embeds)], indexedAt=value, labels=value),
        post(number + 1, {"text": value, "reply": value}, author=author)
        | {"reason": reason if number % 4 else value, "reply": reply},
    ]


def hostile() -> list[object]:
    """Two hundred of them."""
    values = itertools.cycle((*SCRIPTS, *TRICKS, *ODD))
    items: list[object] = [post(0, {"text": "x" * 1_000_000})]  # a megabyte
    items += [post(1000 + n, {"text": "Grüße", "facets": facets}) for n, facets in enumerate(BROKEN_FACETS)]
    items += [{"post": odd} for odd in ODD]
    items += [post(1100 + n, {"text": "x"}) | {"reason": odd, "reply": odd} for n, odd in enumerate(ODD)]
    items += ODD
    number = 2000
    while len(items) < 200:
        items += everywhere(number, next(values))
        number += 2
    return items[:200]


def honest(number: int) -> dict[str, object]:
    author = {"did": "did:plc:alice", "handle": "alice.test", "displayName": "Alice"}
    uri = f"at://did:plc:alice/app.bsky.feed.post/{number}"
    return {"post": {"uri": uri, "author": author, "record": {"text": f"an honest post {number}"}}}


def mixed(feed: list[object], number: Iterator[int]) -> Iterator[object]:
    for at, one in enumerate(feed):
        yield one
        if at % 4 == 0:
            yield honest(next(number))


def pages() -> list[list[object]]:
    """The records, fewer than a hundred to a feed, an honest post after each fourth."""
    bad, number = hostile(), itertools.count()
    return [list(mixed(bad[start : start + 70], number)) for start in range(0, len(bad), 70)]


async def test_nothing_runs_and_the_rest_shows(tmp_path, site, read):
    feeds = pages()
    assert sum(len(feed) for feed in feeds) >= 250
    async with Upstream() as upstream:
        upstream.answer = lambda request: json_response({"feed": feeds[int(request.params["actor"][0][1])]})
        proxy = Proxy(upstream.url, tmp_path, {})
        await asyncio.to_thread(proxy.start)
        try:
            for number, feed in enumerate(feeds):
                await see(proxy, site, read, number, feed)
        finally:
            await asyncio.to_thread(proxy.stop)


async def see(proxy, site, read, number, feed):
    """One feed, rendered by the script and by the server."""
    actor = f"m{number}.test"
    element = f'<bluesky-feed actor="{actor}" limit="100"></bluesky-feed>'
    script = f'<script src="{proxy.url}/widget.js" defer></script>'
    scripted = await read(site.put(element, head=script, path=f"/s{number}"))
    await scripted.shows()
    fragment = await scripted.context.request.get(f"{proxy.url}/embed/{actor}?limit=100&fragment=1")
    assert fragment.ok
    rendered = await read(site.put(await fragment.text(), path=f"/r{number}"))
    document = await read(f"{proxy.url}/embed/{actor}?limit=100")
    good = [item["post"]["record"]["text"] for item in feed if "an honest post" in str(item)]
    for reader in (scripted, rendered, document):
        await reader.settled()
        assert reader.trouble == []
        assert await reader.page.evaluate("window.ran") is None
        texts = await reader.page.locator(".text").all_inner_texts()
        assert [text for text in texts if "an honest post" in text] == good
        assert max(map(len, texts)) < 4000
        inside = reader.page.locator("bluesky-feed *")
        schemes = "all => all.map(e => e.href || e.src).filter(Boolean).map(url => new URL(url).protocol)"
        assert set(await inside.evaluate_all(schemes)) <= {"https:", "http:"}
        names = await inside.evaluate_all("all => all.map(element => element.localName)")
        assert set(names) & {"script", "iframe", "object", "svg", "form"} == set()
        overflow = await reader.page.locator(".feed").evaluate("feed => feed.scrollWidth - feed.clientWidth")
        assert overflow <= 0
    assert await scripted.tree() == await rendered.tree()
    await scripted.page.locator("summary").evaluate_all("all => all.forEach(summary => summary.click())")
    assert await scripted.page.evaluate("window.ran") is None


def odd() -> dict[str, object]:
    """Posts that would harm their neighbours, and values that two languages take for different things."""
    marks, long = "Z\u0361\u035c\u0321\u0489\u0340" * 4000, "n" * 600
    loud = {"did": DID, "handle": "mallory.test", "displayName": long}
    nobody = {"did": DID, "handle": "mallory.test", "displayName": "\u3164\u2800"}
    repost = {"$type": "app.bsky.feed.defs#reasonRepost", "by": loud}
    reply = {"parent": {"author": loud, "uri": address("p")}}
    picture = image("http://127.0.0.1:1/x.png")
    picture["images"][0]["aspectRatio"] = {"width": 3.0, "height": 2.0}  # type: ignore[index]
    bare = {"$type": "app.bsky.embed.recordWithMedia#view", "media": picture, "record": None}
    return {
        "feed": [
            honest(0),
            post(1, {"text": marks[:3000]}),
            honest(2),
            post(3, {"text": "hello", "reply": {"x": 1}}) | {"reason": repost, "reply": reply},
            post(4, {"text": "a picture"}, embed=bare),
            post(5, {"text": "nobody"}, author=nobody),
        ]
    }


async def test_no_post_hides_its_neighbours(tmp_path, site, read):
    async with Upstream() as upstream:
        upstream.answer = lambda _: json_response(odd())
        proxy = Proxy(upstream.url, tmp_path, {})
        await asyncio.to_thread(proxy.start)
        try:
            element = '<bluesky-feed actor="m.test"></bluesky-feed>'
            script = f'<script src="{proxy.url}/widget.js" defer></script>'
            scripted = await read(site.put(element, head=script, path="/s"))
            await scripted.shows()
            fragment = await scripted.context.request.get(f"{proxy.url}/embed/m.test?fragment=1")
            rendered = await read(site.put(await fragment.text(), path="/r"))
        finally:
            await asyncio.to_thread(proxy.stop)
    assert await scripted.tree() == await rendered.tree()
    for reader in (scripted, rendered):
        post_box = reader.page.locator(".post")
        assert set(await post_box.evaluate_all("all => all.map(e => getComputedStyle(e).overflow)")) == {
            "clip"
        }
        for selector in (".note span", ".reply"):
            assert (await reader.page.locator(selector).bounding_box())["height"] < 50
        assert await reader.page.locator(".post:nth-child(5) img").count() == 1
        assert await reader.page.locator(".post:nth-child(6) .name").inner_text() == "mallory.test"
        await reader.page.set_viewport_size({"width": 120, "height": 800})
        overflow = await reader.page.locator(".feed").evaluate("feed => feed.scrollWidth - feed.clientWidth")
        assert overflow <= 0


def alone(request):
    """Each of the values in every field of an account, or of a post that stands alone."""
    values = (*SCRIPTS, *TRICKS, *ODD)
    if "getProfile" in request.path:
        value = values[int(request.params["actor"][0][1:].partition(".")[0])]
        names = ("handle", "displayName", "description", "avatar", "banner", "labels", "followersCount")
        return json_response({"did": DID, **dict.fromkeys((*names, "pinnedPost", "postsCount"), value)})
    number = int(request.params["uri"][0].rpartition("/")[2])
    return json_response({"thread": everywhere(2 * number, values[number])[number % 2]})


async def test_accounts_and_posts_that_stand_alone_do_no_harm(tmp_path, site, read):
    count = len((*SCRIPTS, *TRICKS, *ODD))
    profiles = "".join(f'<bluesky-profile actor="m{n}.test"></bluesky-profile>' for n in range(count))
    posts = "".join(f'<bluesky-post uri="{address(n)}"></bluesky-post>' for n in range(count))
    async with Upstream() as upstream:
        upstream.answer = alone
        async with proxy_before(upstream, tmp_path) as proxy:
            script = f'<script src="{proxy.url}/widget.js" defer></script>'
            reader = await read(site.put(profiles + posts, head=script))
            for name, shown in (("profile", ".profile"), ("post", ".post, .resting")):
                for number in range(count):
                    element = reader.page.locator(f"bluesky-{name}").nth(number)
                    await element.locator(shown).first.wait_for()
            await reader.settled()
    assert await reader.page.locator("bluesky-post .post").count() >= count // 2
    await reader.page.locator("summary").evaluate_all("all => all.forEach(summary => summary.click())")
    assert reader.trouble == []
    assert await reader.page.evaluate("window.ran") is None
    links = await reader.page.locator("a").evaluate_all("all => all.map(link => link.protocol)")
    assert set(links) <= {"https:", "http:"}
    wide = "e => e.scrollWidth - e.clientWidth"
    assert max(await reader.page.locator(".feed").evaluate_all(f"all => all.map({wide})")) <= 0

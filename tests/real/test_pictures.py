"""From a CMS's post to a reader: PDS, AppView and embeds take and show its card, its pictures, its thread."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import pytest
from real.browser import running_site
from real.test_embeds import IMPORTS
from real.widgets import script

from harness.pictures import bomb, noise, picture, turned
from harness.redis_servers import redis_server
from harness.waiting import until_true
from harness.workers import nursery_in
from integration.deployment import AccountOfTest, Deployment

pytestmark = pytest.mark.asyncio(loop_scope="module")

_names = itertools.count()
EMBED = "bluesky-post-embed"
# What is to be known of pictures, once they have come: [alt text, [width, height]].
_PICTURES = """
    async (pictures) => {
      for (const picture of pictures) picture.loading = 'eager'
      await Promise.all(pictures.map((picture) => picture.decode()))
      return pictures.map(({ alt, naturalWidth, naturalHeight }) => [alt, [naturalWidth, naturalHeight]])
    }
"""
PAGE = """<!doctype html><meta property="og:title" content="Grüße vom Hafen">
<meta property="og:description" content="What the page says"><meta property="og:image" content="/cat.jpg">"""


@pytest.fixture(scope="module")
def newsroom(network):
    """`serve` and a worker before the real network; what they may fetch is on loopback."""
    with (
        tempfile.TemporaryDirectory(prefix="fp-") as directory,
        nursery_in(Path(directory)) as nursery,
        redis_server() as store,
    ):
        person = network.do("createAccount", name="photographer")
        account = AccountOfTest(name="main", identifier=person["did"], password=person["password"])
        urls = network.ready["urls"]
        settings = {
            "REDIS_URL": store.url,
            "PLC_URL": urls["plc"],
            "UPSTREAM": urls["appview"],
            "ENRICH_ALLOW": "127.0.0.1/32",
        }
        with Deployment(Path(directory), nursery, [account], **settings) as deployment:
            deployment.worker()
            yield deployment, person


@pytest.fixture
def blog():
    with running_site() as blog:
        blog.pages["/a"] = PAGE
        blog.pages["/cat.jpg"] = picture(size=(400, 200))
        yield blog


def published(newsroom, direct, **fields):
    """The post as the AppView shows it, and its account in the answer to the CMS."""
    deployment, _ = newsroom
    job = deployment.ended(deployment.post(f"picture-{next(_names)}", **fields))
    assert job["status"] == "completed", job
    (account,) = job["accounts"]

    def seen():
        answer = direct.get("/xrpc/app.bsky.feed.getPosts", params={"uris": account["uri"]})
        return answer.json()["posts"]

    (post,) = until_true(seen, "the AppView has the post")
    return post, account


@pytest.fixture(params=["another's embed", "our widget"])
def embedded(request, site, proxy, read):
    """Open a page with those posts, in elements that others wrote or in ours."""
    theirs = request.param == "another's embed"

    async def opened(*uris):
        name = "src" if theirs else "uri"
        embeds = [f'<bluesky-post {name}="{uri}" service-uri="{proxy.url}"></bluesky-post>' for uri in uris]
        imports = json.dumps({"imports": IMPORTS})
        head = f'<script type="importmap">{imports}</script><script type="module">import "{EMBED}"</script>'
        reader = await read(site.put("".join(embeds), head=head if theirs else script(proxy)))
        return reader, reader.page.locator("bluesky-post")

    return opened


async def pictures_in(embed):
    """The pictures of embeds once they have come, by alt text: width and height."""
    return dict(await embed.locator("img").evaluate_all(_PICTURES))


async def test_a_post_has_the_card_of_its_page_with_its_thumbnail(newsroom, blog, direct, embedded):
    post, account = published(newsroom, direct, url=f"{blog.url}/a", title=None, text="A post with a card")
    assert account["degraded"] == []
    assert post["embed"]["$type"] == "app.bsky.embed.external#view"
    external = post["embed"]["external"]
    assert external["uri"] == f"{blog.url}/a"
    assert external["title"] == "Grüße vom Hafen"
    assert external["description"] == "What the page says"
    reader, embed = await embedded(post["uri"])
    await embed.get_by_text("A post with a card").wait_for()
    await embed.get_by_text("Grüße vom Hafen", exact=True).wait_for()
    # The AppView shows it in a size of its own.
    ((alt, (width, height)),) = await embed.locator(f'a[href="{external["uri"]}"] img').evaluate_all(
        _PICTURES
    )
    assert (alt, width) == ("", 2 * height)
    assert external["thumb"] in reader.requests


async def test_a_post_has_four_pictures_with_their_words(newsroom, blog, direct, embedded):
    blog.pages |= {
        "/0.jpg": turned(6, size=(400, 200)),
        "/1.jpg": picture("WEBP", size=(300, 300)),
        "/2.jpg": picture("PNG", size=(200, 100)),
        "/3.jpg": noise((1600, 1200), "JPEG"),
    }
    images = [{"url": f"{blog.url}/{n}.jpg", "alt": f"Bild {n}: ein Kätzchen 🐈"} for n in range(4)]
    post, account = published(
        newsroom, direct, url=f"{blog.url}/b", title=None, text="A post with pictures", images=images
    )
    assert account["degraded"] == []
    assert post["embed"]["$type"] == "app.bsky.embed.images#view"
    shown = post["embed"]["images"]
    assert [one["alt"] for one in shown] == [image["alt"] for image in images]
    ratios = [one["aspectRatio"]["width"] / one["aspectRatio"]["height"] for one in shown]
    assert ratios == pytest.approx([0.5, 1, 2, 4 / 3], rel=0.01)
    _, embed = await embedded(post["uri"])
    await embed.get_by_text("A post with pictures").wait_for()
    sizes = await pictures_in(embed)
    ratios = [width / height for width, height in (sizes[image["alt"]] for image in images)]
    assert ratios == pytest.approx([0.5, 1, 2, 4 / 3], rel=0.01)


async def test_a_long_text_is_a_thread_of_three(newsroom, blog, direct, embedded):
    words = " ".join(f"Satz {number} über den Hafen." for number in range(30))
    post, account = published(newsroom, direct, url=f"{blog.url}/a", title=None, text=words, thread=True)
    assert account["degraded"] == []

    def whole():
        answer = direct.get("/xrpc/app.bsky.feed.getPostThread", params={"uri": post["uri"]})
        found = [answer.json()["thread"]]
        while found[-1].get("replies"):
            found.append(found[-1]["replies"][0])
        return len(found) == 3 and [one["post"] for one in found]

    thread = until_true(whole, "the AppView has the thread")
    texts = [one["record"]["text"] for one in thread]
    assert all(len(text) <= 300 for text in texts)
    assert [one["record"].get("reply", {}).get("root", {}).get("uri") for one in thread] == [
        None,
        post["uri"],
        post["uri"],
    ]
    _, embed = await embedded(*(one["uri"] for one in thread))
    for number, text in enumerate(texts):
        await embed.nth(number).get_by_text(text, exact=True).wait_for()


async def test_what_is_no_picture_is_left_out_and_said(newsroom, blog, direct):
    blog.pages |= {"/bomb.jpg": bomb(), "/half.jpg": picture(size=(400, 200))[:500]}
    names = ("bomb.jpg", "half.jpg", "none.jpg", "cat.jpg")
    images = [{"url": f"{blog.url}/{name}", "alt": name} for name in names]
    images[2]["url"] = "http://127.0.0.2:6379/"
    post, account = published(newsroom, direct, url=f"{blog.url}/c", images=images)
    assert [one["alt"] for one in post["embed"]["images"]] == ["cat.jpg"]
    assert account["degraded"] == [
        "picture 1: has too many pixels",
        "picture 2: is damaged (OSError)",
        "picture 3: 127.0.0.2 leads to no public address on port 80 or 443",
    ]

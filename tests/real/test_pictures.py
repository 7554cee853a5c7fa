"""Cards and pictures from a CMS's post to what the AppView shows."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from real.browser import running_site

from harness.pictures import bomb, noise, picture, turned
from harness.redis_servers import redis_server
from harness.waiting import until_true
from harness.workers import nursery_in
from integration.deployment import AccountOfTest, Deployment

_names = itertools.count()
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


def test_a_post_has_the_card_of_its_page_with_its_thumbnail(newsroom, blog, direct):
    post, account = published(newsroom, direct, url=f"{blog.url}/a", title=None, text="A post with a card")
    assert account["degraded"] == []
    assert post["embed"]["$type"] == "app.bsky.embed.external#view"
    external = post["embed"]["external"]
    assert external["uri"] == f"{blog.url}/a"
    assert external["title"] == "Grüße vom Hafen"
    assert external["description"] == "What the page says"


def test_a_post_has_four_pictures_with_their_words(newsroom, blog, direct):
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


def test_what_is_no_picture_is_left_out_and_said(newsroom, blog, direct):
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

"""What changes on the network changes at the proxy: new posts, other handles, accounts that are gone."""

from __future__ import annotations

import itertools

import httpx
import pytest
from real.harness import cache_status, plain_client, running_proxy

from harness.waiting import until_true

FEED = "/xrpc/app.bsky.feed.getAuthorFeed?actor={}&limit=10"
PROFILE = "/xrpc/app.bsky.actor.getProfile?actor={}"
THREAD = "/xrpc/app.bsky.feed.getPostThread"
NAMES = (f"person{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def impatient_proxy(network, tmp_path_factory):
    with running_proxy(
        network, tmp_path_factory.mktemp("impatient"), CACHE_TTL="1", NEGATIVE_TTL="1"
    ) as proxy:
        yield proxy


@pytest.fixture
def impatient(impatient_proxy):
    """Asks a proxy whose copies are fresh for a second."""
    with plain_client(impatient_proxy.url) as client:
        yield client


@pytest.fixture
def person(network):
    """An account that the test may do anything to."""
    name = next(NAMES)
    return {"name": name, **network.do("createAccount", name=name, posts=["the first", "the second"])}


def posts_of(answer: httpx.Response) -> list[str]:
    # Nothing that happens to a feed while it is asked for may show as an error.
    assert answer.status_code == 200
    return [item["post"]["uri"] for item in answer.json()["feed"]]


def until_refused(client: httpx.Client, target: str, **params: str) -> httpx.Response:
    def refused() -> httpx.Response | None:
        answer = client.get(target, params=params or None)
        assert answer.status_code in (200, 400)
        return answer if answer.status_code == 400 else None

    return until_true(refused, f"{target} is refused")


def test_a_new_post_shows_after_the_ttl(network, impatient, person):
    feed = FEED.format(person["handle"])
    before = posts_of(impatient.get(feed))
    published = network.do("publish", account=person["name"], text="news")["uri"]
    assert published not in before
    until_true(lambda: posts_of(impatient.get(feed)) == [published, *before], "the post shows")
    until_true(lambda: "hit" in cache_status(impatient.get(feed)), "it is a hit like any other")


def test_a_new_post_waits_for_the_ttl(network, proxied, person):
    feed = FEED.format(person["handle"])
    before = proxied.get(feed)
    network.do("publish", account=person["name"], text="news")
    assert proxied.get(feed).content == before.content


def test_a_feed_goes_on_under_the_old_handle(network, impatient, direct, person):
    feed, profile = FEED.format(person["handle"]), PROFILE.format(person["handle"])
    before = posts_of(impatient.get(feed))
    assert impatient.get(profile).json()["handle"] == person["handle"]
    moved = f"{person['name']}-moved.test"
    network.do("changeHandle", account=person["name"], handle=moved)
    assert direct.get(feed).status_code == 400
    published = network.do("publish", account=person["name"], text="from under another name")["uri"]
    until_true(lambda: posts_of(impatient.get(feed)) == [published, *before], "the feed goes on")
    assert impatient.get(feed).content == direct.get(FEED.format(person["did"])).content
    until_true(lambda: impatient.get(profile).json()["handle"] == moved, "the profile tells the new handle")
    assert posts_of(impatient.get(FEED.format(moved))) == [published, *before]


@pytest.mark.parametrize("actor", ["handle", "did"])
def test_a_suspended_account_is_gone(network, impatient, direct, person, actor):
    targets = [PROFILE.format(person[actor]), FEED.format(person[actor])]
    assert [impatient.get(target).status_code for target in targets] == [200, 200]
    network.do("takeDown", account=person["name"])
    for target in targets:
        answer = until_refused(impatient, target)
        assert answer.json() == direct.get(target).json()
    assert impatient.get(targets[0]).json()["error"] == "AccountTakedown"


def test_a_deactivated_account_is_gone(network, impatient, person):
    profile = PROFILE.format(person["handle"])
    assert impatient.get(profile).status_code == 200
    network.do("deactivate", account=person["name"])
    assert until_refused(impatient, profile).json()["error"] == "AccountDeactivated"


def test_a_deleted_post_is_gone(network, impatient, person):
    uri = person["posts"][0]["uri"]
    assert impatient.get(THREAD, params={"uri": uri}).status_code == 200
    network.do("deletePost", account=person["name"], uri=uri)
    assert until_refused(impatient, THREAD, uri=uri).json()["error"] == "NotFound"
    until_true(
        lambda: uri not in posts_of(impatient.get(FEED.format(person["handle"]))), "the feed is without it"
    )


def test_an_account_that_comes_into_being_shows(network, impatient):
    name = next(NAMES)
    feed = FEED.format(f"{name}.test")
    assert impatient.get(feed).status_code == 400
    network.do("createAccount", name=name, posts=["here I am"])
    until_true(lambda: impatient.get(feed).status_code == 200, "the new account shows")
    assert len(posts_of(impatient.get(feed))) == 1

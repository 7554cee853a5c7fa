"""The SDKs that widgets are built with, pointed at the proxy, see what they see at the AppView."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from atproto import Client
from atproto.exceptions import BadRequestError
from real.harness import Network, run_script

LABELER = "did:example:labeler"


def report_of_atproto_api(service: str, network: Network) -> dict[str, Any]:
    """What clients/api.mjs saw at a service."""
    posts = [network.uri(record) for record in ("facets", "images", "external", "quote")]
    facts = {
        "actor": "alice.test",
        "did": network.did("alice"),
        "labeler": LABELER,
        "feed": network.uri("feedgen"),
        "post": network.uri("facets"),
        "posts": posts,
    }
    return run_script("api.mjs", service, facts=facts)


@pytest.fixture(scope="module")
def at_the_appview(network):
    return report_of_atproto_api(network.appview, network)


@pytest.fixture(scope="module")
def at_the_proxy(network, proxy):
    return report_of_atproto_api(proxy.url, network)


class TestAtprotoApi:
    """@atproto/api, which checks each answer against the lexicons."""

    def test_every_answer_is_the_same(self, at_the_appview, at_the_proxy):
        assert at_the_proxy == at_the_appview

    def test_the_script_saw_something(self, network, at_the_proxy):
        assert len(at_the_proxy["getAuthorFeed"]["data"]["feed"]) > 20
        assert at_the_proxy["getProfile"]["data"]["did"] == network.did("alice")
        assert at_the_proxy["getPostThread"]["data"]["thread"]["post"]["uri"] == network.uri("facets")
        assert len(at_the_proxy["getPosts"]["data"]["posts"]) == 4
        assert at_the_proxy["resolveHandle"]["data"]["did"] == network.did("alice")
        assert len(at_the_proxy["getFeed"]["data"]["feed"]) == 3
        assert LABELER in at_the_proxy["configureLabelers"]["labelers"]

    def test_errors_are_understood(self, at_the_proxy):
        unknown = at_the_proxy["unknownProfile"]
        assert (unknown["understood"], unknown["status"], unknown["code"]) == (True, 400, "InvalidRequest")
        assert unknown["message"] == "Profile not found"
        assert at_the_proxy["unknownPost"]["code"] == "NotFound"

    def test_paging_reaches_every_post_once(self, network, at_the_proxy):
        posts = [uri for page in at_the_proxy["pages"] for uri in page]
        assert len(posts) == len(set(posts)) == 68  # sixty fillers, seven of every kind, a repost
        assert posts[-1] == network.uri("filler1")


class TestPythonSdk:
    """The package `atproto`, which parses answers into strict models."""

    @pytest.fixture
    def both(self, network, proxy):
        clients = Client(base_url=proxy.url), Client(base_url=network.appview)
        yield clients
        for client in clients:
            client.request.close()

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            ("get_author_feed", {"actor": "alice.test", "limit": 30}),
            ("get_author_feed", {"actor": "alice.test", "filter": "posts_no_replies", "include_pins": True}),
            ("get_profile", {"actor": "alice.test"}),
            ("get_profiles", {"actors": ["alice.test", "bob.test"]}),
            ("get_post_thread", {"uri": "facets"}),
            ("get_posts", {"uris": ["facets", "images"]}),
            ("resolve_handle", {"handle": "alice.test"}),
        ],
    )
    def test_models_are_the_same(self, network, both, method, arguments):
        filled = {name: self.filled(network, name, value) for name, value in arguments.items()}
        through_proxy, at_the_appview = (getattr(client, method)(**filled) for client in both)
        assert through_proxy == at_the_appview
        assert through_proxy.model_dump()

    def test_feed_of_a_generator(self, network, both):
        parameters = {"feed": network.uri("feedgen"), "limit": 5}
        through_proxy, at_the_appview = (client.app.bsky.feed.get_feed(parameters) for client in both)
        assert through_proxy == at_the_appview
        assert len(through_proxy.feed) == 3

    def test_an_unknown_profile_is_a_bad_request(self, both):
        with pytest.raises(BadRequestError) as refused:
            both[0].get_profile("nobody.test")
        assert refused.value.response.content.message == "Profile not found"

    def test_paging_gives_the_same_posts(self, both):
        through_proxy, at_the_appview = (self.every_post(client) for client in both)
        assert through_proxy == at_the_appview
        assert len(through_proxy) > 60

    @staticmethod
    def filled(network, name, value):
        if name == "uri":
            return network.uri(value)
        if name == "uris":
            return [network.uri(record) for record in value]
        return value

    @staticmethod
    def every_post(client) -> list[str]:
        uris, cursor = [], None
        while True:
            page = client.get_author_feed("alice.test", cursor=cursor, limit=11)
            uris += [item.post.uri for item in page.feed]
            if (cursor := page.cursor) is None:
                return uris


def test_a_path_prefix_is_dropped_by_javascript_clients_and_served_all_the_same(proxy):
    # They resolve /xrpc/… against the service, so only the origin of the proxy matters to them.
    url = httpx.URL(f"{proxy.url}/feeds/").join("/xrpc/app.bsky.actor.getProfile?actor=alice.test")
    assert httpx.get(url, trust_env=False).status_code == 200

"""The proxy gives the AppView's own answers: whatever is in requests.json, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from real.harness import HERE, Network, assert_xrpc_error, cache_status, fill, run_script

from proxy.feeds.methods import METHODS

REQUESTS: dict[str, list[dict[str, Any]]] = json.loads((HERE / "requests.json").read_text())
# Newer than the AppView that the tests run.
UNKNOWN_TO_THE_APPVIEW = {"app.bsky.feed.searchPostsV2", "app.bsky.graph.searchStarterPacksV2"}
FIRST_PAGES = {"alice5": "", "noReplies5": "&filter=posts_no_replies"}


def entries(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", REQUESTS[kind], ids=lambda entry: entry["name"])


@pytest.fixture
def ask(network, cursors):
    """Send an entry of requests.json, filled in, as its client sent it."""

    def send(client: httpx.Client, entry: dict[str, Any], *, headers: bool = True) -> httpx.Response:
        return client.request(
            entry.get("method", "GET"),
            fill(entry["target"], network, cursors),
            headers=entry.get("headers") if headers else None,
            content=entry.get("body"),
        )

    return send


@pytest.fixture(scope="module")
def cursors(network: Network) -> dict[str, str]:
    """Cursors after the first five posts of alice, as the AppView hands them out."""
    target = f"{network.appview}/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.test&limit=5"
    return {name: httpx.get(target + more).json()["cursor"] for name, more in FIRST_PAGES.items()}


def test_no_public_method_is_left_out():
    paths = (entry["target"].partition("?")[0] for entry in REQUESTS["public"])
    asked = {path.removeprefix("/xrpc/").strip("/") for path in paths}
    assert set(METHODS) - asked == UNKNOWN_TO_THE_APPVIEW


def test_public_is_what_the_appview_answers_without_a_login(network, direct, proxied):
    facts = {"actor": "alice.test", "did": network.did("alice"), "uri": network.uri("facets")}
    targets = run_script("queries.mjs", facts=facts)
    public = {nsid for nsid, target in targets.items() if direct.get(target).status_code in (200, 400)}
    served = {nsid for nsid, target in targets.items() if proxied.get(target).status_code in (200, 400)}
    assert len(public) > 20
    assert public - served == {"app.bsky.feed.getActorLikes"}  # which finds a profile for its owner only
    assert served - public == set()


@entries("public")
def test_the_answer_is_the_appviews(entry, ask, direct, proxied):
    # What newer AppViews read as `same_as`, the proxy reads so in front of any.
    expected = ask(direct, entry | entry.get("same_as", {}))
    assert expected.status_code == 200
    for _ in range(2):  # forwarded, then stored (or stored already, when another entry asks the same)
        answer = ask(proxied, entry)
        assert answer.status_code == 200
        assert answer.content == expected.content
        for name in ("content-type", "atproto-content-labelers"):
            assert answer.headers.get(name) == expected.headers.get(name)
    assert cache_status(answer)["hit"] is True


@entries("invalid")
def test_what_the_appview_refuses_is_refused(entry, ask, direct, proxied):
    # 400, but for what a newer AppView is stricter about: the proxy goes by the newest lexicons.
    assert ask(direct, entry).status_code == entry["status"]
    answer = ask(proxied, entry)
    assert 400 <= answer.status_code < 500
    assert_xrpc_error(answer)


@entries("credentials")
def test_credentials_are_neither_forwarded_nor_in_the_way(entry, ask, direct, proxied):
    assert ask(direct, entry).status_code == entry["status"]
    answer = ask(proxied, entry)
    assert answer.status_code == 200
    assert answer.content == ask(direct, entry, headers=False).content


@entries("not_public")
def test_other_methods_are_refused_by_the_proxy_itself(entry, ask, proxied):
    answer = ask(proxied, entry)
    assert 400 <= answer.status_code < 500 or answer.status_code == 501
    assert_xrpc_error(answer)


@entries("trouble")
def test_a_question_that_breaks_the_appview_spoils_only_itself(entry, ask, direct, proxied):
    assert ask(direct, entry).status_code == 500
    # More often than it takes to open the breaker: the AppView is alive, whatever this question does to it.
    for _ in range(8):
        answer = ask(proxied, entry)
        assert answer.status_code >= 500
        assert_xrpc_error(answer)
    unasked = "/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.test&limit=91"
    answer = proxied.get(unasked)
    assert answer.status_code == 200
    assert answer.content == direct.get(unasked).content

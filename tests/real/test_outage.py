"""The AppView is away: what was seen once goes on being served, and says how old it is."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest
from real.harness import Network, assert_xrpc_error, cache_status, plain_client

from harness.waiting import until_true

FEED = "/xrpc/app.bsky.feed.getAuthorFeed?actor=alice.test&limit=20"
KNOWN = (
    FEED,
    "/xrpc/app.bsky.actor.getProfile?actor=alice.test",
    "/xrpc/com.atproto.identity.resolveHandle?handle=alice.test",
)
NEVER_SEEN = "/xrpc/app.bsky.feed.getAuthorFeed?actor=bob.test&limit=20"
SHORT_LIVED = {"CACHE_TTL": "1", "NEGATIVE_TTL": "1", "UPSTREAM_TIMEOUT": "4", "BREAKER_COOLDOWN": "1"}


class Outage:
    """Takes the AppView away, and brings it back at the latest when the test is over."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._lasts = False

    def begin(self) -> None:
        self._network.do("stopAppView")
        self._lasts = True

    def end(self) -> None:
        if self._lasts:
            self._network.do("startAppView")
            self._lasts = False


@pytest.fixture
def outage(network):
    outage = Outage(network)
    yield outage
    outage.end()


def ask(proxy, target: str) -> httpx.Response:
    with plain_client(proxy.url) as client:
        return client.get(target)


def ask_known(proxy, target: str) -> httpx.Response:
    answer = ask(proxy, target)
    # Whatever happens behind us: never an error where there is a copy.
    assert answer.status_code == 200
    return answer


def is_aged(answer: httpx.Response) -> bool:
    return "detail" in cache_status(answer) and int(answer.headers["age"]) >= 3


def updated_at(answer: httpx.Response) -> datetime:
    return datetime.fromisoformat(answer.headers["feed-updated-at"])


def assert_truthful(answer: httpx.Response, earliest: datetime, latest: datetime) -> None:
    """The headers, which count in seconds, agree with a fetch between the two instants."""
    now = datetime.now(UTC)
    age_s = int(answer.headers["age"])
    assert (now - latest).total_seconds() - 2 <= age_s <= (now - earliest).total_seconds() + 2
    assert (earliest - updated_at(answer)).total_seconds() <= 2
    assert (updated_at(answer) - latest).total_seconds() <= 2
    assert (answer.headers["feed-updated"] == "updated just now") is (age_s < 60)
    assert cache_status(answer)["hit"] is True
    assert int(cache_status(answer)["ttl"]) <= 0


# Stale either while (in vain) refreshing or because a refresh has failed.
@pytest.mark.parametrize(
    ("window_s", "details"),
    [("86400", {"stale-while-revalidate", "stale-if-error"}), ("1", {"stale-if-error"})],
    ids=["while-revalidating", "if-error"],
)
def test_known_feeds_outlive_the_appview_and_a_restart(start_proxy, outage, window_s, details):
    proxy = start_proxy(STALE_WHILE_REVALIDATE=window_s, **SHORT_LIVED)
    earliest = datetime.now(UTC)
    known = {target: ask_known(proxy, target) for target in KNOWN}
    outage.begin()
    latest = datetime.now(UTC)

    def assert_still_served() -> None:
        for target, first in known.items():
            until_true(lambda target=target: is_aged(ask_known(proxy, target)), f"{target} has aged")
            answer = ask_known(proxy, target)
            assert answer.content == first.content
            assert cache_status(answer)["detail"] in details
            assert_truthful(answer, earliest, latest)

    assert_still_served()
    proxy.stop()
    proxy.start()
    assert_still_served()


def test_a_feed_never_seen_is_an_error_that_clients_understand(start_proxy, outage):
    proxy = start_proxy(**SHORT_LIVED)
    outage.begin()
    for _ in range(3):
        answer = ask(proxy, NEVER_SEEN)
        assert answer.status_code in (502, 503, 504)
        body = assert_xrpc_error(answer)
        assert body["error"] in ("UpstreamFailure", "UpstreamUnavailable", "UpstreamTimeout")
        assert answer.status_code != 503 or int(answer.headers["retry-after"]) >= 0


def test_it_recovers_with_the_appview(start_proxy, outage):
    proxy = start_proxy(**SHORT_LIVED)
    before = ask_known(proxy, FEED)
    outage.begin()
    until_true(lambda: is_aged(ask_known(proxy, FEED)), "the feed has aged")
    assert ask(proxy, NEVER_SEEN).status_code in (502, 503, 504)
    outage.end()
    back_at = datetime.now(UTC)
    until_true(
        lambda: updated_at(ask_known(proxy, FEED)) >= back_at.replace(microsecond=0), "the feed is confirmed"
    )
    assert ask_known(proxy, FEED).content == before.content
    until_true(lambda: ask(proxy, NEVER_SEEN).status_code == 200, "the other feed is there")

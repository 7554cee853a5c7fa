"""Mentions are resolved before the record is frozen, within a bound; what fails costs the post nothing."""

from __future__ import annotations

import pytest

from harness.pds import LOSE_ANSWER, LOSE_REQUEST
from harness.upstream import Response
from integration.publishing import ALICE, BOB, delivery_of, key_of, post_of, publish
from proxy.bluesky.wire import REQUEST_TIMEOUT_S
from proxy.syndication.attempt import Published, Transient
from proxy.syndication.mentions import MAX_MENTIONS, MENTIONS_TIMEOUT_S


@pytest.fixture
def host(world):
    return world.host()


def asked(world):
    """Whose handles the directory was asked for, other than the account's own."""
    handles = [
        call.param("handle") for call in world.directory.requests if call.path.endswith("resolveHandle")
    ]
    return [handle for handle in handles if handle != "alice.test"]


def mentioned(alice, post):
    """DIDs in the facets of the published record."""
    record, _ = alice.records[key_of(post)]
    features = [feature for facet in record["facets"] for feature in facet["features"]]
    return [feature["did"] for feature in features if "did" in feature]


async def test_a_mention_leads_to_its_account(world, host, alice):
    post = post_of(title="With @Bob.test and @nobody.test, and @Bob.test again")
    outcome = await publish(host, post)
    assert mentioned(alice, post) == [BOB, BOB]
    assert outcome.degraded == ("@nobody.test could not be resolved: plain text",)
    assert asked(world) == ["bob.test", "nobody.test"]


async def test_a_post_without_mentions_asks_for_none(world, host):
    await publish(host, post_of(title="mail to bob@bob.test"))
    assert asked(world) == []


@pytest.mark.parametrize(
    "trouble", [Response(hang=True), Response(status=429, body=b"{}"), Response(status=200, body=b"<html>")]
)
async def test_a_directory_in_trouble_costs_the_post_nothing(world, host, alice, trouble):
    await publish(host, post_of(1))
    answer = world.directory.answer
    world.directory.answer = lambda call: trouble if call.param("handle") == "bob.test" else answer(call)
    post = post_of(2, title="With @bob.test")
    started_at = world.clock.steady()
    outcome = await publish(host, post)
    assert isinstance(outcome, Published)
    assert mentioned(alice, post) == []
    assert outcome.degraded == ("@bob.test could not be resolved: plain text",)
    if trouble.hang:
        assert MENTIONS_TIMEOUT_S <= world.clock.steady() - started_at < REQUEST_TIMEOUT_S


async def test_so_many_are_asked_for_and_no_more(world, host):
    text = " ".join(f"@p{number}.test" for number in range(MAX_MENTIONS + 5))
    outcome = await publish(host, post_of(text=text))
    assert len(asked(world)) == MAX_MENTIONS
    assert outcome.degraded == (f"@p0.test and {MAX_MENTIONS + 4} more could not be resolved: plain text",)


@pytest.mark.parametrize("fault", [LOSE_ANSWER, LOSE_REQUEST])
async def test_what_was_frozen_is_not_resolved_again_and_says_what_it_went_without(world, host, alice, fault):
    post = post_of(title="With @bob.test and @nobody.test")
    delivery, job = delivery_of(post)
    world.pds.fail("putRecord", fault)
    world.pds.fail("getRecord", fault)
    first, lease = await host.attempt(delivery, post, job)
    assert isinstance(first, Transient)
    del world.directory.handles["bob.test"]
    second, _ = await world.host().attempt(lease.delivery, post, job)
    assert mentioned(alice, post) == [BOB]
    assert second.degraded == ("@nobody.test could not be resolved: plain text",)
    assert asked(world) == ["bob.test", "nobody.test"]
    assert alice.did == ALICE

"""What was posted is found again, whatever the queue knows of it and whatever has become of its date."""

from __future__ import annotations

import pytest

from integration.publishing import ALICE, delivery_of, key_of, linking, post_of, publish
from proxy.syndication.direct import DirectPublisher


@pytest.fixture
def host(world):
    return world.host()


@pytest.mark.parametrize("age_s", [0, 300, 86400])
async def test_a_post_whose_date_was_edited_is_found_again(world, host, alice, age_s):
    first = await publish(host, post_of(age_s=age_s))
    outcome = await publish(world.host(), post_of(age_s=age_s + 30))
    assert (outcome.uri, outcome.cid, outcome.found) == (first.uri, first.cid, True)
    again = await publish(world.host(), post_of(age_s=-60))
    assert (again.uri, again.found) == (first.uri, True)
    assert len(alice.records) == 1


@pytest.mark.parametrize("generation", [1, 3])
async def test_a_post_that_had_stepped_aside_is_found_again(host, alice, generation):
    first = post_of(age_s=60)
    delivery, job = delivery_of(first)
    for taken in range(generation):
        alice.records[key_of(first, taken)] = (linking("https://blog.example/before"), "bafy")
    outcome, _ = await host.attempt(delivery, first, job)
    assert outcome.uri.endswith(key_of(first, generation))
    again = await publish(host, post_of())
    assert (again.uri, again.found) == (outcome.uri, True)


async def test_what_the_queue_has_posted_is_found_while_it_is_away(world, host, alice):
    first = await publish(host, post_of(age_s=120))
    host.store.away = True
    directly = DirectPublisher(
        host.publish, host.sessions, lambda: host.accounts, world.clock, closed=lambda _: False
    )
    published = await directly(host.accounts.sites["blog"], post_of(), ["main"])
    assert (published["main"].uri, published["main"].found) == (first.uri, True)
    assert len(alice.records) == 1


async def test_what_was_posted_while_the_queue_was_away_is_found_by_it(world, host, alice):
    await publish(host, post_of(2))
    host.store.away = True
    directly = DirectPublisher(
        host.publish, host.sessions, lambda: host.accounts, world.clock, closed=lambda _: False
    )
    first = (await directly(host.accounts.sites["blog"], post_of(age_s=120), ["main"]))["main"]
    host.store.away = False
    again = await publish(host, post_of())
    assert (again.uri, first.found, again.found) == (first.uri, False, True)
    assert len(alice.records) == 2


async def test_another_post_on_the_same_page_is_another(host, alice):
    url = "https://blog.example/ticker"
    outcomes = [await publish(host, post_of(number, url=url)) for number in (1, 2, 3)]
    assert [outcome.found for outcome in outcomes] == [False] * 3
    assert len(alice.records) == 3


@pytest.mark.parametrize("age_s", [0, 3600])
async def test_another_post_that_a_fragment_tells_apart_is_another(host, alice, age_s):
    for number in (1, 2):
        post = post_of(number, age_s=age_s, url=f"https://app.example/#/post/{number}")
        assert not (await publish(host, post)).found
    assert len(alice.records) == 2


async def test_a_roundup_is_not_what_it_mentions(host, alice):
    later = post_of(2, age_s=3600)
    await publish(host, post_of(1, excerpt=f"Coming: {later.url}"))
    assert not (await publish(host, later)).found
    assert len(alice.records) == 2


async def test_an_id_that_came_to_be_another_posts_is_another(world, host, alice):
    world.pds.put(ALICE, key_of(post_of(age_s=86400)), linking("https://blog.example/before"))
    outcome = await publish(host, post_of())
    assert not outcome.found
    assert len(alice.records) == 2

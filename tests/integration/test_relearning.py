"""A queue that was lost finds again what it has posted, whatever has become of its date meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from integration.publishing import ALICE, delivery_of, key_of, linking, post_of


async def publish(host, post, *, seq):
    delivery, job = delivery_of(post)
    outcome, _ = await host.attempt(replace(delivery, seq=seq), post, job)
    return outcome


@pytest.fixture
def host(world):
    return world.host()


@pytest.mark.parametrize("age_s", [0, 300, 86400])
async def test_a_post_whose_date_was_edited_is_found_again(world, host, alice, age_s):
    first = await publish(host, post_of(age_s=age_s), seq=1)
    outcome = await publish(world.host(), post_of(age_s=age_s + 30), seq=1)
    assert (outcome.uri, outcome.cid, outcome.found) == (first.uri, first.cid, True)
    again = await publish(world.host(), post_of(age_s=-60), seq=2)
    assert (again.uri, again.found) == (first.uri, True)
    assert len(alice.records) == 1


async def test_another_post_on_the_same_page_is_another(world, host, alice):
    url = "https://blog.example/ticker"
    outcomes = [await publish(host, post_of(number, url=url), seq=number) for number in (1, 2, 3)]
    assert [outcome.found for outcome in outcomes] == [False] * 3
    assert len(alice.records) == 3


async def test_an_id_that_came_to_be_another_posts_is_another(world, host, alice):
    world.pds.put(ALICE, key_of(post_of(age_s=86400)), linking("https://blog.example/before"))
    outcome = await publish(host, post_of(), seq=1)
    assert not outcome.found
    assert len(alice.records) == 2


@pytest.mark.parametrize(("seq", "looks"), [(1, 1), (10_000, 1), (10_001, 0), (0, 0)])
async def test_a_queue_that_remembers_does_not_look(world, host, seq, looks):
    await publish(host, post_of(), seq=seq)
    assert len(world.pds.calls("listRecords")) == looks

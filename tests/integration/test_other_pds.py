"""PDSs that do not know `swapRecord: null`: what may be there is neither doubled nor replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.pds import LOSE_ANSWER, LOSE_REQUEST
from harness.upstream import xrpc_error
from integration.publishing import ALICE, delivery_of, key_of, linking, post_of, publish, sent
from proxy.errors import StoreUnavailable
from proxy.syndication.attempt import Permanent, Published, Transient
from proxy.syndication.job import Action
from proxy.syndication.rkey import record_uri


@pytest.fixture(params=["overwrites", "refuses"])
def other(world, request):
    """A PDS of another make; and one of our processes."""
    world.pds.null_swap = request.param
    return world.host()


async def test_a_lost_answer_is_found_and_not_sent_again(world, other):
    post = post_of()
    delivery, job = delivery_of(post)
    world.pds.fail("putRecord", LOSE_ANSWER)
    first, lease = await other.attempt(delivery, post, job)
    there = Published(uri=record_uri(ALICE, key_of(post)), cid=lease.intents[0]["cid"], found=True)
    assert first == there
    second, _ = await world.host().attempt(lease.delivery, post, job)
    assert second == there
    assert len(sent(world)) == len(world.pds.commits) == 1


async def test_a_lost_request_is_sent_again(world, other):
    post = post_of()
    delivery, job = delivery_of(post)
    world.pds.fail("putRecord", LOSE_REQUEST)
    _, lease = await other.attempt(delivery, post, job)
    outcome, _ = await other.attempt(lease.delivery, post, job)
    assert (outcome.uri, outcome.found) == (record_uri(ALICE, key_of(post)), False)
    assert len(world.pds.commits) == 1


@pytest.mark.parametrize("newer", [0, 100], ids=["listed", "too old to be listed"])
async def test_after_a_loss_of_the_queue_it_is_found_in_its_first_words(world, other, newer):
    post = post_of(age_s=3600)
    first = await publish(other, post)
    for number in range(newer):
        world.pds.put(ALICE, f"3z{number:011}", linking(f"https://blog.example/other/{number}"))
    world.store.delete_all()
    again = await publish(world.host(), post.model_copy(update={"title": "Mended"}))
    assert (again.uri, again.cid, again.found) == (first.uri, first.cid, True)
    assert len(world.pds.commits) == 1


@pytest.mark.parametrize("newer", [0, 100], ids=["listed", "too old to be listed"])
async def test_another_posts_record_is_not_overwritten(world, other, alice, newer):
    post = post_of(age_s=3600)
    foreign = world.pds.put(ALICE, key_of(post), linking("https://blog.example/foreign"))
    for number in range(newer):
        world.pds.put(ALICE, f"3z{number:011}", linking(f"https://blog.example/other/{number}"))
    outcome = await publish(other, post)
    assert outcome.uri == record_uri(ALICE, key_of(post, 1))
    assert alice.records[key_of(post)][1] == foreign


async def test_what_is_missing_may_be_a_404(world, other):
    post = post_of(age_s=3600)
    delivery, job = delivery_of(post)
    world.pds.fail("putRecord", LOSE_REQUEST)
    _, lease = await other.attempt(delivery, post, job)
    world.pds.fail("getRecord", xrpc_error(404, "NotFound", "record not found"))
    outcome, _ = await other.attempt(lease.delivery, post, job)
    assert (outcome.uri, outcome.found) == (record_uri(ALICE, key_of(post)), False)


@pytest.mark.parametrize("name", ["getRecord", "listRecords"])
async def test_a_look_that_is_refused_is_no_verdict_and_sends_nothing(world, other, name):
    post = post_of(age_s=3600)
    delivery, job = delivery_of(post)
    if name == "getRecord":
        world.pds.fail("putRecord", LOSE_ANSWER)
        _, lease = await other.attempt(delivery, post, job)
        delivery = lease.delivery
    before = len(sent(world))
    world.pds.fail(name, xrpc_error(400, "InvalidRequest", "what?"))
    assert isinstance((await other.attempt(delivery, post, job))[0], Transient)
    assert len(sent(world)) == before


async def test_what_was_changed_since_is_not_deleted(world, other, alice):
    post = post_of()
    outcome = await publish(other, post)
    delivery, job = delivery_of(post, action=Action.DELETE)
    delivery = replace(delivery, did=ALICE, uri=outcome.uri, cid=outcome.cid)
    world.pds.put(ALICE, key_of(post), linking("https://blog.example/another"))
    deleted, _ = await other.attempt(delivery, post, job)
    assert isinstance(deleted, Permanent)
    assert world.pds.calls("deleteRecord") == []
    assert len(alice.records) == 1


@pytest.mark.parametrize("fault", [LOSE_REQUEST, LOSE_ANSWER], ids=str)
async def test_whatever_breaks_it_is_there_once_and_as_it_was_first_sent(world, other, fault):
    await publish(other, post_of(0))
    before = len(world.pds.requests)
    await publish(other, post_of(1, age_s=3600))
    for boundary in range(len(world.pds.requests) - before):
        post = post_of(2 + boundary, age_s=3600)
        calls = iter(range(10**6))
        world.pds.chaos = lambda _, at=boundary, calls=calls: fault if next(calls) == at else None
        delivery, job = delivery_of(post)
        outcome = None
        for _ in range(3):
            try:
                outcome, lease = await other.attempt(delivery, post, job)
            except StoreUnavailable:
                continue
            delivery = lease.delivery
            if isinstance(outcome, Published):
                break
        assert outcome.uri == record_uri(ALICE, key_of(post))
        assert len([commit for commit in world.pds.commits if commit[1] == key_of(post)]) == 1

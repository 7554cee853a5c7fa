"""A thread is there once and whole, or not at all, whatever breaks; and goes as it came."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.pds import LOSE_ANSWER, LOSE_REQUEST
from harness.upstream import xrpc_error
from integration.publishing import (
    ALICE,
    NO_PAUSE,
    LeaseOfTest,
    delivery_of,
    key_of,
    linking,
    post_of,
    publish,
)
from proxy.errors import LeaseLost, StoreUnavailable
from proxy.syndication.attempt import Permanent, Published, Transient
from proxy.syndication.intent import cid_of
from proxy.syndication.job import Action
from proxy.syndication.rkey import record_uri, reply_key

TEXT = "A sentence of some length. " * 30
PARTS = 3


@pytest.fixture
def host(world):
    return world.host()


def thread_of(number=1, **fields):
    return post_of(number, text=TEXT, thread=True, **fields)


def thread_at(account, root_key):
    """The texts of a thread as its readers find them, from its root down."""
    texts, part, above = [], 0, None
    while (entry := account.records.get(reply_key(root_key, part))) is not None:
        record, cid = entry
        reply = record.get("reply")
        assert (above is None) == (reply is None)
        if reply is not None:
            assert reply["parent"] == above
            assert reply["root"]["uri"] == record_uri(ALICE, root_key)
        assert cid == cid_of(record)
        above = {"uri": record_uri(ALICE, reply_key(root_key, part)), "cid": cid}
        texts.append(record["text"])
        part += 1
    return texts


async def test_it_is_created_in_one_commit_at_the_predicted_keys(world, host, alice):
    post = thread_of()
    delivery, job = delivery_of(post)
    outcome, lease = await host.attempt(delivery, post, job)
    assert outcome == Published(uri=record_uri(ALICE, key_of(post)), cid=lease.intents[0]["cid"])
    assert len(world.pds.calls("applyWrites")) == 1
    texts = thread_at(alice, key_of(post))
    assert len(texts) == len(alice.records) == PARTS
    assert " ".join(texts).replace(f"\n\n{post.url}", "").split() == TEXT.split()


async def test_a_text_that_fits_is_an_ordinary_post(world, host, alice):
    await publish(host, post_of(text="Short.", thread=True))
    assert len(alice.records) == len(world.pds.calls("putRecord")) == 1


@pytest.mark.parametrize("fault", [LOSE_REQUEST, LOSE_ANSWER, xrpc_error(500, "InternalServerError")])
async def test_at_whichever_request_something_breaks_it_is_there_once_and_whole(world, alice, fault):
    await publish(world.host(), thread_of(0, age_s=3600))
    whole = len(world.pds.requests)
    assert whole == 4  # login, lookup, read, write
    for boundary in range(whole):
        world.store.delete_all()
        host, post = world.host(), thread_of(1 + boundary, age_s=3600)
        calls = iter(range(10**6))
        world.pds.chaos = lambda _, at=boundary, calls=calls: fault if next(calls) == at else None
        delivery, job = delivery_of(post)
        first, lease = await host.attempt(delivery, post, job)
        found_at_once = fault == LOSE_ANSWER and boundary == whole - 1
        assert isinstance(first, Published if found_at_once else Transient)
        # The CMS has edited it meanwhile; what may have been sent is what stands.
        edited = post.model_copy(update={"text": "Much shorter."}) if lease.intents else post
        second, _ = await world.host().attempt(lease.delivery, edited, job)
        assert isinstance(second, Published)
        assert len(thread_at(alice, key_of(post))) == PARTS
        assert len([c for c in world.pds.commits if c[1] == key_of(post)]) == 1


@pytest.mark.parametrize("after", [False, True])
async def test_at_whichever_store_call_something_breaks_it_is_there_once_and_whole(world, alice, after):
    first = world.host()
    await publish(first, thread_of(0))
    for boundary in range(first.store.calls):
        world.store.delete_all()
        host, post = world.host(policy=replace(NO_PAUSE, hold_s=0.05)), thread_of(1 + boundary)
        host.store.fails_at, host.store.fails_after = boundary, after
        delivery, job = delivery_of(post)
        for _ in range(3):
            try:
                outcome, lease = await host.attempt(delivery, post, job)
            except StoreUnavailable:
                continue
            delivery = lease.delivery
            if isinstance(outcome, Published):
                break
        assert len(thread_at(alice, key_of(post))) == PARTS
        assert len([c for c in world.pds.commits if c[1] == key_of(post)]) == 1


async def test_two_workers_at_once_make_one_thread(world, alice):
    """The one that is too late fails like a server in trouble, and finds the thread."""
    post = thread_of()
    delivery, job = delivery_of(post)

    def overtake(call):
        if call.name == "applyWrites" and not alice.records:
            world.pds._applyWrites(call)

    world.pds.chaos = overtake
    outcome, _ = await world.host().attempt(delivery, post, job)
    assert (outcome.uri, outcome.found) == (record_uri(ALICE, key_of(post)), True)
    assert len(alice.records) == PARTS


@pytest.mark.parametrize("age_s", [0, 3600])
async def test_after_a_loss_of_the_queue_it_is_found_and_gets_no_more_replies(world, host, alice, age_s):
    post = thread_of(age_s=age_s)
    first = await publish(host, post)
    world.store.delete_all()
    longer = post.model_copy(update={"text": TEXT + "And something new. " * 40})
    again = await publish(world.host(), longer)
    assert (again.uri, again.cid, again.found) == (first.uri, first.cid, True)
    assert len(alice.records) == PARTS


async def test_after_a_loss_of_the_queue_it_is_found_under_an_edited_date(world, host, alice):
    first = await publish(host, thread_of(age_s=3600))
    world.store.delete_all()
    again = await publish(world.host(), thread_of(age_s=1800))
    assert (again.uri, again.found) == (first.uri, True)
    assert len(alice.records) == PARTS


async def test_at_another_posts_key_the_whole_thread_steps_aside(world, host, alice):
    post = thread_of()
    world.pds.put(ALICE, key_of(post), linking("https://blog.example/foreign"))
    outcome = await publish(host, post)
    assert outcome.uri == record_uri(ALICE, key_of(post, 1))
    assert len(thread_at(alice, key_of(post, 1))) == PARTS


async def test_nothing_is_sent_after_the_lease(world, host):
    post = thread_of()
    delivery, job = delivery_of(post)
    lease = LeaseOfTest(delivery, job, clock=world.clock)
    lease.over = True
    with pytest.raises(LeaseLost):
        await host.publish(delivery, post, lease)
    assert world.pds.calls("applyWrites") == []


class TestDeletion:
    async def published(self, host, post):
        outcome = await publish(host, post)
        delivery, job = delivery_of(post, action=Action.DELETE)
        return replace(delivery, did=ALICE, uri=outcome.uri, cid=outcome.cid), job

    @pytest.mark.parametrize("missing", [(), (0,), (1,), (2,), (0, 1)], ids=str)
    @pytest.mark.parametrize("words", [{}, {"text": "Short.", "thread": False}], ids=["its words", "a stub"])
    async def test_all_of_it_goes_whatever_its_author_deleted(self, host, alice, missing, words):
        post = thread_of()
        delivery, job = await self.published(host, post)
        for part in missing:
            del alice.records[reply_key(key_of(post), part)]
        outcome, _ = await host.attempt(delivery, post.model_copy(update=words), job)
        assert outcome == Published(uri=delivery.uri, cid=delivery.cid)
        assert alice.records == {}

    @pytest.mark.parametrize("cursors_are_keys", [True, False])
    async def test_all_of_an_old_one_goes(self, world, host, alice, cursors_are_keys):
        world.pds.cursors_are_keys = cursors_are_keys
        post = thread_of(age_s=3600)
        delivery, job = await self.published(host, post)
        del alice.records[reply_key(key_of(post), 1)]
        for number in range(100):
            world.pds.put(ALICE, f"3z{number:011}", linking(f"https://blog.example/other/{number}"))
        await host.attempt(delivery, post_of(), job)
        assert len(alice.records) == 100

    async def test_what_its_author_replied_stays(self, world, host, alice):
        post = thread_of()
        delivery, job = await self.published(host, post)
        above = {"uri": delivery.uri, "cid": delivery.cid}
        reply = linking("https://blog.example/more", reply={"root": above, "parent": above})
        keys = ["3kaaaaaaaaaa2", "3zaaaaaaaaaa2"]
        for key in keys:
            world.pds.put(ALICE, key, reply)
        await host.attempt(delivery, post, job)
        assert list(alice.records) == keys

    async def test_at_whichever_request_an_answer_is_lost_all_of_it_goes(self, world, host, alice):
        for boundary in range(2 + PARTS):  # the root is read and deleted, the rest listed and deleted
            world.pds.chaos = lambda _: None
            post = thread_of(boundary)
            delivery, job = await self.published(host, post)
            calls = iter(range(10**6))
            world.pds.chaos = lambda _, at=boundary, calls=calls: LOSE_ANSWER if next(calls) == at else None
            first, _ = await host.attempt(delivery, post, job)
            second, _ = await host.attempt(delivery, post, job)
            assert isinstance(first, Transient)
            assert isinstance(second, Published)
            assert alice.records == {}

    async def test_a_root_that_was_changed_keeps_its_thread(self, world, host, alice):
        post = thread_of()
        delivery, job = await self.published(host, post)
        world.pds.put(ALICE, key_of(post), linking("https://blog.example/another"))
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Permanent)
        assert len(alice.records) == PARTS

    async def test_a_record_that_is_no_reply_to_it_stays(self, world, host, alice):
        post = post_of()
        delivery, job = await self.published(host, post)
        world.pds.put(ALICE, reply_key(key_of(post), 1), linking("https://blog.example/another"))
        await host.attempt(delivery, post, job)
        assert list(alice.records) == [reply_key(key_of(post), 1)]

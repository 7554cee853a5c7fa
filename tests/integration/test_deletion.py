"""What was published is deleted once, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.pds import LOSE_ANSWER
from integration.publishing import (
    ALICE,
    delivery_of,
    key_of,
    linking,
    post_of,
    publish,
)
from proxy.syndication.attempt import Permanent, Published, Transient
from proxy.syndication.job import Action


@pytest.fixture
def host(world):
    return world.host()


class TestDeletion:
    async def published(self, host, post):
        outcome = await publish(host, post)
        delivery, job = delivery_of(post, action=Action.DELETE)
        return replace(delivery, did=ALICE, uri=outcome.uri, cid=outcome.cid), job

    async def test_what_was_published_is_deleted_and_once_more_is_no_error(self, host, alice):
        post = post_of()
        delivery, job = await self.published(host, post)
        for _ in range(2):
            outcome, _ = await host.attempt(delivery, post, job)
            assert outcome == Published(uri=delivery.uri, cid=delivery.cid)
        assert alice.records == {}

    async def test_what_was_adopted_is_deleted_where_it_is(self, world, host, alice):
        post = post_of(age_s=3600)
        world.pds.put(ALICE, "3kaaaaaaaaaa2", linking(post.url))
        delivery, job = await self.published(host, post)
        await host.attempt(delivery, post, job)
        assert alice.records == {}

    async def test_what_became_another_record_stays(self, world, host, alice):
        post = post_of()
        delivery, job = await self.published(host, post)
        world.pds.put(ALICE, key_of(post), linking("https://blog.example/another"))
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Permanent)
        assert len(alice.records) == 1

    async def test_a_lost_answer_is_tried_again(self, world, host, alice):
        post = post_of()
        delivery, job = await self.published(host, post)
        world.pds.fail("deleteRecord", LOSE_ANSWER)
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Transient)
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Published)

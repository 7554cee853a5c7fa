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

    async def test_what_another_has_posted_stays_and_it_says_so(self, world, host, alice):
        post = post_of(age_s=3600)
        world.pds.put(ALICE, "3kaaaaaaaaaa2", linking(post.url))
        delivery, job = await self.published(host, post)
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Permanent)
        assert outcome.reason.startswith("its record was not posted by feedproxy for this post")
        assert list(alice.records) == ["3kaaaaaaaaaa2"]
        del alice.records["3kaaaaaaaaaa2"]
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Published)

    async def test_the_record_of_another_post_with_the_same_link_stays(self, host, alice):
        first = post_of(1, age_s=3600)
        await publish(host, first)
        second = post_of(2, age_s=3600, url=first.url)
        delivery, job = await self.published(host, second)
        outcome, _ = await host.attempt(delivery, second, job)
        assert isinstance(outcome, Permanent)
        assert list(alice.records) == [key_of(first)]

    @pytest.mark.parametrize("later_s", [0, 1800], ids=["at its key", "under an edited date"])
    async def test_what_was_adopted_under_its_own_key_is_deleted(self, world, host, alice, later_s):
        await publish(host, post_of(age_s=3600))
        post = post_of(age_s=3600 - later_s)
        delivery, job = await self.published(host, post)
        await host.attempt(delivery, post, job)
        assert alice.records == {}

    @pytest.mark.parametrize("generation", [0, 2, 4])
    @pytest.mark.parametrize("later_s", [0, 1800], ids=["at its key", "under an edited date"])
    async def test_what_the_queue_has_forgotten_is_found_by_its_key(self, host, alice, generation, later_s):
        post = post_of(age_s=3600)
        posted, job = delivery_of(post)
        await host.attempt(posted, post, replace(job, generation=generation))
        await publish(host, post_of(2))
        draft = post_of(age_s=3600 - later_s, url="https://blog.example/1__trashed")
        delivery, job = delivery_of(draft, action=Action.DELETE)
        outcome, _ = await host.attempt(delivery, draft, replace(job, generation=generation))
        assert isinstance(outcome, Published)
        # Beyond the fourth, only the generation that is remembered tells a key.
        left = {key_of(post_of(2))} | ({key_of(post, 4)} if (generation, later_s) == (4, 1800) else set())
        assert len(alice.records) == len(left)

    async def test_what_the_queue_has_forgotten_and_is_gone_is_no_error(self, host, alice):
        await publish(host, post_of(2))
        delivery, job = delivery_of(post_of(), action=Action.DELETE)
        outcome, _ = await host.attempt(delivery, post_of(), job)
        assert isinstance(outcome, Published)
        assert len(alice.records) == 1

    async def test_what_became_another_record_stays(self, world, host, alice):
        post = post_of()
        delivery, job = await self.published(host, post)
        world.pds.put(ALICE, key_of(post), linking("https://blog.example/another"))
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Permanent)
        # What is counted by its reason names no address.
        assert outcome.reason == "its record was changed since it was published, and stays"
        assert len(alice.records) == 1

    async def test_a_lost_answer_is_tried_again(self, world, host, alice):
        post = post_of()
        delivery, job = await self.published(host, post)
        world.pds.fail("deleteRecord", LOSE_ANSWER)
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Transient)
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Published)

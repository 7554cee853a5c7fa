"""The one attempt of the intake while the queue is away."""

from __future__ import annotations

import pytest

from harness.pds import LOSE_ANSWER, LOSE_REQUEST
from integration.publishing import (
    ALICE,
    key_of,
    post_of,
    publish,
    sent,
)
from proxy.syndication.direct import DirectPublisher
from proxy.syndication.rkey import record_uri


@pytest.fixture
def host(world):
    return world.host()


class TestWithoutTheQueue:
    def direct(self, world, host, closed=frozenset()):
        return DirectPublisher(
            host.publish, host.sessions, lambda: host.accounts, world.clock, closed=closed.__contains__
        )

    async def test_with_a_session_at_hand_it_is_published_at_once(self, world, host, alice):
        await publish(host, post_of(1))
        host.store.away = True
        post = post_of(2)
        site = host.accounts.sites["blog"]
        published = await self.direct(world, host)(site, post, ["main", "bob"])
        assert {name: outcome.uri for name, outcome in published.items()} == {
            "main": record_uri(ALICE, key_of(post))
        }
        # The CMS sends it again once the queue is back.
        host.store.away = False
        again = await publish(host, post)
        assert (again.uri, again.found) == (published["main"].uri, True)
        assert world.logins == 1

    async def test_nobody_logs_in_for_it(self, world, host):
        site = host.accounts.sites["blog"]
        assert await self.direct(world, host)(site, post_of(), ["main"]) == {}
        assert world.logins == 0

    async def test_a_closed_account_is_left_alone(self, world, host):
        await publish(host, post_of(1))
        site = host.accounts.sites["blog"]
        assert await self.direct(world, host, closed={"main"})(site, post_of(2), ["main"]) == {}
        assert len(sent(world)) == 1

    async def test_a_lost_answer_is_looked_for(self, world, host):
        await publish(host, post_of(1))
        world.pds.fail("putRecord", LOSE_ANSWER)
        site = host.accounts.sites["blog"]
        published = await self.direct(world, host)(site, post_of(2), ["main"])
        assert published["main"].found

    async def test_a_failure_is_no_error(self, world, host):
        await publish(host, post_of(1))
        world.pds.fail("putRecord", LOSE_REQUEST)
        site = host.accounts.sites["blog"]
        assert await self.direct(world, host)(site, post_of(2), ["main"]) == {}

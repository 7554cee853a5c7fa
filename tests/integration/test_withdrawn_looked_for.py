"""A post that is withdrawn when it may have been sent is looked for at its key, and not sent again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.pds import LOSE_ANSWER
from harness.upstream import xrpc_error
from integration.publishing import delivery_of, key_of, linking, post_of, sent
from proxy.syndication.attempt import Permanent, Published, Transient


@pytest.fixture
def host(world):
    return world.host()


async def withdrawn(host, post):
    """The delivery of `post` after an attempt that failed, and its job."""
    delivery, job = delivery_of(post)
    outcome, lease = await host.attempt(delivery, post, job)
    assert isinstance(outcome, Transient)
    return replace(lease.delivery, after="cancel"), job


async def test_what_never_came_is_not_sent(world, host, alice):
    post = post_of()
    world.pds.fail("putRecord", xrpc_error(503, "Down", "down"))
    delivery, job = await withdrawn(host, post)
    before = len(sent(world))
    outcome, _ = await host.attempt(delivery, post, job)
    assert isinstance(outcome, Permanent)
    assert (len(sent(world)), alice.records) == (before, {})


async def test_what_is_there_is_found(world, host, alice):
    post = post_of()
    world.pds.fail("putRecord", LOSE_ANSWER)
    world.pds.fail("getRecord", xrpc_error(503, "Down", "down"))
    delivery, job = await withdrawn(host, post)
    before = len(sent(world))
    outcome, _ = await host.attempt(delivery, post, job)
    assert isinstance(outcome, Published)
    assert (len(sent(world)), outcome.found) == (before, True)


async def test_another_posts_record_at_its_key_is_none_of_it(world, host, alice):
    post = post_of()
    world.pds.fail("putRecord", xrpc_error(503, "Down", "down"))
    delivery, job = await withdrawn(host, post)
    world.pds.put("did:plc:alice", key_of(post), linking("https://blog.example/another"))
    before = len(sent(world))
    outcome, _ = await host.attempt(delivery, post, job)
    assert isinstance(outcome, Permanent)
    assert (len(sent(world)), len(alice.records)) == (before, 1)

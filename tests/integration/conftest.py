"""Fixtures of tests that publish."""

from __future__ import annotations

import pytest
import redis

from harness.pds import Directory, PdsServer
from integration.publishing import ALICE, BOB, PASSWORD, World


@pytest.fixture
async def world(store):
    """Two PDSs, of which the first hosts alice and bob, and a store of the test's own."""
    async with Directory() as directory, PdsServer(directory) as pds, PdsServer(directory) as other:
        pds.host(ALICE, "alice.test", PASSWORD)
        pds.host(BOB, "bob.test", PASSWORD)
        world = World(directory, pds, other, store)
        yield world
        await world.close()


@pytest.fixture
def alice(world):
    return world.pds.accounts[ALICE]


@pytest.fixture
def raw(store):
    """The store behind everybody's back."""
    client = redis.Redis.from_url(store.url)
    yield client
    client.close()

"""Fixtures of tests that publish, and of those of the queue."""

from __future__ import annotations

import contextlib
import functools

import pytest
import redis

from harness.pds import Directory, PdsServer
from harness.queue import queue_on, sound_queue
from harness.redis_servers import KINDS, redis_server
from harness.stranger import strangers
from integration.publishing import ALICE, BOB, PASSWORD, World
from integration.web import Web


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


@pytest.fixture(scope="session")
def server_of():
    """A server of that kind, the same for all who ask."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(redis_server(kind)))


@pytest.fixture(scope="module", params=KINDS)
def server(request, server_of):
    """Each kind of server there is; namespaces keep tests apart."""
    return server_of(request.param)


@pytest.fixture
def stored(server):
    with sound_queue(server.url) as own:
        yield own


@pytest.fixture(params=[False, True], ids=["once", "twice"])
async def queue(request, stored):
    """A queue whose every script is sent once, or twice, and which has nothing to repair at the end."""
    async with queue_on(stored.url, stored.namespace, twice=request.param) as queue:
        yield queue
        cursor, repairs = await queue.reconcile()
        while cursor != "0":
            cursor, more = await queue.reconcile(cursor)
            repairs += more
        assert repairs == []


@pytest.fixture
async def web():
    async with strangers() as (server, inside):
        yield Web(server, inside)


@pytest.fixture
def host(world, web):
    world.clock = web.clock
    return world.host(enricher=web.enricher())

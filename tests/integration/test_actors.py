"""Accounts come, go and change their names: what becomes of their feeds."""

from __future__ import annotations

import pytest

from harness.proxy import feed
from harness.upstream import json_response, xrpc_error

ALICE = {"handle": "alice.test", "did": "did:plc:alice"}
NOT_FOUND = xrpc_error(400, "InvalidRequest", "Profile not found")


class Network:
    """An AppView with one account, Alice."""

    def __init__(self, upstream):
        self.handle = "alice.test"
        self.posts = 1
        self.gone = None
        upstream.answer = self.answer

    def answer(self, request):
        actor = request.params["actor"][0]
        if actor not in (self.handle, ALICE["did"]):
            return NOT_FOUND
        if self.gone is not None:
            return self.gone
        author = {**ALICE, "handle": self.handle}
        return json_response({"feed": [{"post": {"author": author, "n": n}} for n in range(self.posts)]})


@pytest.fixture
def network(upstream):
    return Network(upstream)


async def test_a_changed_handle_goes_on_under_its_did(start, upstream, network, clock):
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(feed("alice.test"))
        network.handle = "alice.example"
        for posts in (2, 3):
            network.posts = posts
            await proxy.pass_time(200)
            answer = await proxy.get(feed("alice.test"))
            assert answer.status_code == 200
            assert len(answer.json()["feed"]) == posts
            assert answer.headers["age"] == "0"
        network.handle = "alice.test"
        await proxy.pass_time(200)
        asked = upstream.count
        assert (await proxy.get(feed("alice.test"))).status_code == 200
        assert upstream.count == asked + 1


async def test_a_handle_that_is_gone_with_its_account_is_gone(start, upstream, network, clock):
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(feed("alice.test"))
        network.gone = NOT_FOUND
        network.handle = "nobody.test"
        await proxy.pass_time(200)
        answer = await proxy.get(feed("alice.test"))
        assert answer.status_code == 400
        assert answer.json()["message"] == "Profile not found"


@pytest.mark.parametrize("error", ["AccountDeactivated", "AccountTakedown", "NotFound"])
@pytest.mark.parametrize("status", [400, 404])
async def test_an_account_taken_down_replaces_its_copy(start, upstream, network, clock, store, error, status):
    async with start(clock=clock, CACHE_TTL=100) as proxy:
        await proxy.get(feed("alice.test"))
        network.gone = xrpc_error(status, error, "gone")
        await proxy.pass_time(150)
        await proxy.get(feed("alice.test"))
        await proxy.landed()
        answer = await proxy.get(feed("alice.test"))
        assert answer.status_code == status
        assert answer.json()["error"] == error
        network.gone = None
        await proxy.pass_time(100)
        assert (await proxy.get(feed("alice.test"))).status_code == 200


async def test_any_other_refusal_keeps_the_copy(start, upstream, network, clock):
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(feed("alice.test"))
        network.gone = xrpc_error(400, "InvalidRequest", "could not find feed")
        await proxy.pass_time(200)
        answer = await proxy.get(feed("alice.test"))
        assert answer.status_code == 200
        assert "; detail=stale-if-error; fwd-status=400" in answer.headers["cache-status"]


async def test_not_found_for_a_handle_whose_did_is_unknown_keeps_the_copy(start, upstream, clock):
    upstream.answer = lambda _: json_response({"feed": []})
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(feed("alice.test"))
        upstream.answer = lambda _: NOT_FOUND
        await proxy.pass_time(200)
        assert (await proxy.get(feed("alice.test"))).status_code == 200


async def test_not_found_for_a_did_replaces_the_copy(start, upstream, clock):
    upstream.answer = lambda _: json_response({"feed": []})
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(feed("did:plc:alice"))
        upstream.answer = lambda _: NOT_FOUND
        await proxy.pass_time(200)
        assert (await proxy.get(feed("did:plc:alice"))).status_code == 400


async def test_resolve_handle_keeps_asking_for_the_handle(start, upstream, clock):
    target = "/xrpc/com.atproto.identity.resolveHandle?handle=alice.test"
    upstream.answer = lambda _: json_response({"did": "did:plc:alice"})
    async with start(clock=clock, CACHE_TTL=100, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(target)
        upstream.answer = lambda _: xrpc_error(400, "InvalidRequest", "Unable to resolve handle")
        await proxy.pass_time(200)
        await proxy.get(target)
    assert {request.target for request in upstream.requests} == {target}

"""The only feeds that an operator wants served: which questions that lets through, method by method."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from harness.proxy import feed
from harness.upstream import Response, json_response, xrpc_error
from harness.wire import Wire
from proxy.feeds.key import ACCOUNT_FORMATS
from proxy.feeds.methods import METHODS, Method, Param
from proxy.web_server import web_server

ALICE, ALICES_DID = "alice.test", "did:plc:alice"
BOB, BOBS_DID = "bob.test", "did:plc:bob"
MALLORY, MALLORYS_DID = "mallory.test", "did:plc:mallory"
ACCOUNTS = {ALICE: ALICES_DID, BOB: BOBS_DID, MALLORY: MALLORYS_DID}
HANDLES = {did: handle for handle, did in ACCOUNTS.items()}
# Alice is named by her handle, Bob by his DID, of Mallory one feed.
LISTED_FEED = f"at://{MALLORY}/app.bsky.feed.generator/cats"
LISTED = f"{ALICE},{BOBS_DID},{LISTED_FEED}"
# Required, and names no account.
OTHERWISE_REQUIRED = {"q": "cats"}

OURS = (ALICE, ALICES_DID, BOB, BOBS_DID, ALICE.upper())
FOREIGN = (MALLORY, MALLORYS_DID, "alice.test.example", "did:web:alice.test")


def names_accounts(param: Param) -> bool:
    return param.format == "at-uri" or param.format in ACCOUNT_FORMATS


def fits(param: Param, account: str) -> bool:
    return param.format != "handle" or not account.startswith("did:")


def value_of(param: Param, account: str) -> str:
    return f"at://{account}/app.bsky.feed.post/3abc" if param.format == "at-uri" else account


def asked(method: Method, **values: str | list[str]) -> str:
    """A question with everything that `method` requires; what is not in `values` is of Alice."""
    given: dict[str, object] = {}
    for param in method.params.values():
        if param.name in values:
            given[param.name] = values[param.name]
        elif param.required:
            given[param.name] = (
                value_of(param, ALICE) if names_accounts(param) else OTHERWISE_REQUIRED[param.name]
            )
    return f"/xrpc/{method.nsid}?{urlencode(given, doseq=True)}"


def is_of_accounts(method: Method) -> bool:
    return any(param.required and names_accounts(param) for param in method.params.values())


OF_ACCOUNTS = [method for method in METHODS.values() if is_of_accounts(method)]
OF_EVERYTHING = [method for method in METHODS.values() if not is_of_accounts(method)]


def questions(method: Method, accounts: tuple[str, ...]) -> Iterator[str]:
    """For each parameter that names accounts and each account: alone, and last among Alice's."""
    for param in filter(names_accounts, method.params.values()):
        for account in accounts:
            if fits(param, account):
                value = value_of(param, account)
                yield asked(method, **{param.name: value})
                if param.many:
                    yield asked(method, **{param.name: [value_of(param, ALICE), value]})


def network(request) -> Response:
    """An upstream that knows who is who."""
    if request.path.endswith("resolveHandle") and (handle := request.params["handle"][0]) in ACCOUNTS:
        return json_response({"did": ACCOUNTS[handle]})
    if request.path.endswith("getProfile") and (actor := request.params["actor"][0]) in (*ACCOUNTS, *HANDLES):
        did = ACCOUNTS.get(actor, actor)
        return json_response({"did": did, "handle": HANDLES[did]})
    return json_response({"target": request.target})


@pytest.fixture
def upstream_knows(upstream):
    upstream.answer = network
    return upstream


def test_the_methods_are_told_apart():
    assert {method.nsid.rpartition(".")[2] for method in OF_EVERYTHING} == {
        *("getSuggestions", "getSuggestedFeeds", "searchActors", "searchActorsTypeahead"),
        *("searchPosts", "searchPostsV2", "searchStarterPacks", "searchStarterPacksV2"),
    }
    assert all(list(questions(method, FOREIGN)) for method in OF_ACCOUNTS)
    assert {len(OF_ACCOUNTS) + len(OF_EVERYTHING)} == {len(METHODS)}


@pytest.mark.parametrize("method", OF_ACCOUNTS, ids=lambda method: method.nsid)
async def test_those_of_ours_are_answered_and_those_of_others_are_not(start, upstream_knows, method):
    async with start(ACTORS=LISTED) as proxy:
        for question in questions(method, OURS):
            answer = await proxy.get(question)
            assert answer.status_code == 200, question
        before = upstream_knows.count
        for question in questions(method, FOREIGN):
            refused = await proxy.get(question)
            assert refused.status_code == 403, question
            assert refused.json()["error"] == "Forbidden"
            assert refused.headers["cache-control"] == "no-store"
            assert refused.headers["access-control-allow-origin"] == "*"
        assert upstream_knows.count == before
    spoken_of = " ".join(request.target for request in upstream_knows.requests)
    # Who has the listed feed is asked, to know it under its DID.
    assert not {name for name in FOREIGN if name in spoken_of.replace(f"?handle={MALLORY}", "")}


@pytest.mark.parametrize("method", OF_EVERYTHING, ids=lambda method: method.nsid)
async def test_searches_and_suggestions_are_not_answered(start, upstream_knows, method):
    async with start(ACTORS=LISTED) as proxy:
        for question in (asked(method), *questions(method, OURS)):
            assert (await proxy.get(question)).status_code == 403, question
    assert upstream_knows.count == 0


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.nsid)
async def test_without_a_list_everything_is_answered(start, upstream_knows, method):
    async with start() as proxy:
        for question in (asked(method), *questions(method, (MALLORY,))):
            assert (await proxy.get(question)).status_code == 200, question


@pytest.mark.parametrize("nsid", ["app.bsky.feed.getFeed", "app.bsky.feed.getFeedGenerator"])
async def test_a_listed_feed_is_served_and_no_other_of_its_maker(start, upstream_knows, nsid):
    async with start(ACTORS=LISTED) as proxy:
        statuses = {
            uri: (await proxy.get(f"/xrpc/{nsid}?feed={uri}")).status_code
            for uri in (
                LISTED_FEED,
                LISTED_FEED.replace(MALLORY, MALLORYS_DID),
                LISTED_FEED.replace(MALLORY, MALLORY.upper()),
                LISTED_FEED.replace("cats", "dogs"),
                LISTED_FEED.replace(MALLORY, MALLORYS_DID).replace("cats", "dogs"),
                LISTED_FEED.replace(MALLORY, "other.test"),
                LISTED_FEED.replace("generator", "post"),
            )
        }
        assert list(statuses.values()) == [200, 200, 200, 403, 403, 403, 403]
        assert (await proxy.get(feed(MALLORY))).status_code == 403
        assert (await proxy.get(feed(MALLORYS_DID))).status_code == 403


@pytest.mark.parametrize("name", [f"at://{ALICE}", f"at://{ALICE.upper()}/", ALICE.upper()])
async def test_an_account_may_be_written_in_several_ways(start, upstream_knows, name):
    async with start(ACTORS=name) as proxy:
        assert (await proxy.get(feed(ALICE))).status_code == 200
        assert (await proxy.get(feed(ALICES_DID))).status_code == 200
        assert (await proxy.get(feed(MALLORY))).status_code == 403


async def test_who_is_who_is_asked_once(start, upstream_knows):
    async with start(ACTORS=LISTED) as proxy:
        for stranger in FOREIGN * 3:
            assert (await proxy.get(feed(stranger))).status_code == 403
    asked_for = sorted(request.target for request in upstream_knows.requests)
    assert asked_for == [
        f"/xrpc/app.bsky.actor.getProfile?actor={BOBS_DID}",
        f"/xrpc/com.atproto.identity.resolveHandle?handle={ALICE}",
        f"/xrpc/com.atproto.identity.resolveHandle?handle={MALLORY}",
    ]


async def test_a_stranger_is_one_even_if_some_of_ours_are_unknown(start, upstream_knows):
    """A handle of ours that leads nowhere is an answer: it is no DID's."""
    async with start(ACTORS="gone.test") as proxy:
        upstream_knows.answer = lambda _: xrpc_error(400, "InvalidRequest", "Unable to resolve handle")
        assert (await proxy.get(feed(MALLORYS_DID))).status_code == 403


async def test_what_cannot_be_known_now_is_no_refusal(start, upstream_knows, clock):
    async with start(ACTORS=LISTED, clock=clock, RETRY_MAX=1) as proxy:
        upstream_knows.answer = lambda _: xrpc_error(500, "InternalServerError")
        unknown = await proxy.get(feed(ALICES_DID))
        assert (unknown.status_code, unknown.json()["error"]) == (502, "UpstreamFailure")
        await proxy.pass_time(10)
        upstream_knows.answer = network
        assert (await proxy.get(feed(ALICES_DID))).status_code == 200
        # From now on it is known, whatever the upstream does.
        upstream_knows.answer = lambda _: xrpc_error(500, "InternalServerError")
        await proxy.pass_time(3600)
        assert (await proxy.get(feed(ALICES_DID))).status_code == 200
        assert (await proxy.get(feed(MALLORYS_DID))).status_code == 403


async def test_an_account_that_changed_its_handle_is_followed(start, upstream_knows, clock):
    async with start(ACTORS=BOBS_DID, clock=clock, CACHE_TTL=100) as proxy:
        assert (await proxy.get(feed(BOB))).status_code == 200
        upstream_knows.answer = lambda request: (
            json_response({"did": BOBS_DID, "handle": "robert.test"})
            if "getProfile" in request.target
            else json_response({})
        )
        await proxy.pass_time(200)
        await proxy.get(feed("robert.test"))
        await proxy.landed()
        assert (await proxy.get(feed("robert.test"))).status_code == 200
        assert (await proxy.get(feed(BOB))).status_code == 403, "the handle may be anybody's by now"


async def test_pages_are_bound_as_feeds_are(start, upstream_knows):
    upstream_knows.answer = lambda request: json_response({"feed": []})
    async with start(ACTORS=LISTED) as proxy:
        assert (await proxy.get(f"/embed/{ALICE}")).status_code == 200
        assert (await proxy.get(f"/embed/{MALLORY}")).status_code == 403


async def test_who_is_not_served_is_not_on_the_short_way_either(start, upstream_knows):
    async with start(ACTORS=LISTED) as proxy:
        server = web_server(proxy.web.app, proxy.settings, proxy.web.reading.hits.answer)
        for account, status in ((MALLORY, b"403"), (ALICE, b"200"), (ALICES_DID, b"200")):
            question = f"GET {feed(account)} HTTP/1.1\r\nHost: proxy.test\r\n\r\n".encode()
            answers = await Wire(server).send(question, question, question)
            assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [status] * 3

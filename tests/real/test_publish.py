"""Publishing to the reference PDS: what our own stand-in says of it in tests/integration is true."""

from __future__ import annotations

import itertools
from dataclasses import replace

import httpx
import pytest
from pydantic import SecretStr
from real.harness import plain_client

from integration.publishing import World, delivery_of, post_of
from proxy.bluesky.transport import DeadlineTransport
from proxy.syndication.accounts import load_accounts
from proxy.syndication.attempt import Credentials, Permanent, Published
from proxy.syndication.fitting import count_graphemes
from proxy.syndication.intent import cid_of, restore_intent
from proxy.syndication.job import Action
from proxy.syndication.record import freeze, texts_of
from proxy.syndication.richtext import PLAIN_TEMPLATE
from proxy.syndication.rkey import POST_COLLECTION, record_key, record_uri
from proxy.tenants import Tenants

FAMILY = "👨‍👩‍👧‍👦"
_names = itertools.count()


class RealWorld(World):
    """Hosts before the real servers."""

    def __init__(self, network, store) -> None:
        super().__init__(None, None, None, store)
        self.network = network
        self.plc_url = network.ready["urls"]["plc"]
        self.resolver_url = network.ready["urls"]["pds"]

    def person(self) -> dict[str, str]:
        """A new account, for tests that change what others rely on."""
        name = f"person{next(_names)}"
        return {"name": name, **self.network.do("createAccount", name=name)}

    def accounts_of(self, *people, password: str = "", identifier: str = ""):
        tenants = {
            "accounts": [
                {"name": p["name"], "identifier": identifier or p["handle"], "password_env": p["name"]}
                for p in people
            ],
            "sites": [
                {"name": "blog", "token_env": "T", "accounts": [people[0]["name"]], "langs": ["en"]},
            ],
        }
        secrets = {p["name"]: password or p["password"] for p in people}
        return load_accounts(Tenants.model_validate(tenants), {"T": "t" * 20, **secrets})

    def host_of(self, *people, transport=None, **options):
        return self.host(accounts=self.accounts_of(*people, **options), transport=transport)


@pytest.fixture
async def world(pdses, store):
    world = RealWorld(pdses, store)
    yield world
    await world.close()


@pytest.fixture
def alice(world):
    return world.person()


class Drops(httpx.AsyncBaseTransport):
    """Loses the answers to the first calls of a method, after the server has done its work."""

    def __init__(self, clock, name: str, count: int = 1) -> None:
        self._transport = DeadlineTransport(clock, max_connections=8)
        self._name = name
        self.left = count
        self.calls: list[tuple[str, bytes]] = []

    async def handle_async_request(self, request):
        name = request.url.path.rpartition(".")[2]
        self.calls.append((name, await request.aread()))
        response = await self._transport.handle_async_request(request)
        if name == self._name and self.left:
            self.left -= 1
            await response.aread()
            await response.aclose()
            raise httpx.ReadError("the test lost the answer")
        return response

    async def aclose(self):
        await self._transport.aclose()

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


async def publish(host, post, person):
    delivery, job = delivery_of(post, person["name"])
    return await host.attempt(delivery, post, job)


def read(world, uri, *, pds="pds"):
    """The record as anybody may read it; None if it is not there."""
    did, _, rkey = uri.removeprefix("at://").split("/")
    answer = httpx.get(
        f"{world.network.ready['urls'][pds]}/xrpc/com.atproto.repo.getRecord",
        params={"repo": did, "collection": POST_COLLECTION, "rkey": rkey},
        trust_env=False,
    )
    return answer.json() if answer.status_code == 200 else None


def records_of(world, person):
    answer = httpx.get(
        f"{world.network.ready['urls']['pds']}/xrpc/com.atproto.repo.listRecords",
        params={"repo": person["did"], "collection": POST_COLLECTION, "limit": 100},
        trust_env=False,
    )
    return answer.json()["records"]


def key_of(post, person, generation=0):
    return record_key(
        did=person["did"],
        site="blog",
        post_id=post.id,
        published_at_ms=post.published_at_ms,
        generation=generation,
    )


async def test_a_post_is_on_two_accounts_at_its_predicted_uris(world, alice):
    bob = world.person()
    host = world.host_of(alice, bob)
    post = post_of(
        title=f"Grüße {FAMILY} 日本語", excerpt="Worum es geht", tags=["python"], langs=["de", "ja"]
    )
    for person in (alice, bob):
        outcome, lease = await publish(host, post, person)
        assert outcome == Published(
            uri=record_uri(person["did"], key_of(post, person)), cid=lease.intents[0]["cid"], found=False
        )
        record = read(world, outcome.uri)
        assert record["cid"] == outcome.cid == cid_of(record["value"])
        text = record["value"]["text"].encode()
        (facet,) = record["value"]["facets"]
        assert text[facet["index"]["byteStart"] : facet["index"]["byteEnd"]].decode() == post.url
        assert record["value"]["langs"] == ["de", "ja"]


TEXTS = {
    "full of words": {"title": "word " * 200, "excerpt": "x " * 500},
    "families": {"text": FAMILY * 299},
    "CJK without spaces": {"title": "字" * 900},
    "Devanagari conjuncts": {"title": "क्षत्रिय " * 90},
    "Thai, Hebrew, Arabic": {"title": "ภาษาไทย สวัสดี שלום عَرَبِيّ " * 25},
    "flags and keycaps": {"text": "🇩🇪🇫🇷🇯🇵 1️⃣ ☝️ 👋🏽 " * 60},
    "stacked marks": {"text": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞ " * 40},
    "a link too long to be shown": {"title": "T", "url": "https://blog.example/" + "x" * 1500},
    "a link that is no ASCII": {"title": "T", "url": "https://bücher.example/日本?q=ü#ä"},
    "its own text": {"text": "Hangul 각각 " * 100},
    "labels and many tags": {"labels": ["nudity"], "tags": [f"tag{n}" for n in range(20)]},
}


@pytest.mark.parametrize("fields", TEXTS.values(), ids=TEXTS)
async def test_whatever_a_cms_writes_passes_the_validation_of_the_pds(world, alice, fields):
    outcome, _ = await publish(world.host_of(alice), post_of(**fields), alice)
    assert isinstance(outcome, Published)
    value = read(world, outcome.uri)["value"]
    assert count_graphemes(value["text"]) <= 300


class TestExactlyOnce:
    async def test_an_answer_lost_after_the_commit_is_found_again(self, world, alice):
        drops = Drops(world.clock, "putRecord")
        host = world.host_of(alice, transport=drops)
        post = post_of()
        first, lease = await publish(host, post, alice)
        there = Published(
            uri=record_uri(alice["did"], key_of(post, alice)), cid=lease.intents[0]["cid"], found=True
        )
        assert first == there
        assert (drops.count("putRecord"), drops.count("getRecord")) == (1, 1)
        # So does a worker that takes the job over.
        second, _ = await world.host_of(alice).attempt(lease.delivery, post, lease.job)
        assert second == there
        assert len(records_of(world, alice)) == 1

    async def test_what_is_repeated_byte_for_byte_writes_nothing(self, world, alice):
        drops = Drops(world.clock, "nothing")
        host = world.host_of(alice, transport=drops)
        outcome, _ = await publish(host, post_of(), alice)
        (body,) = (body for name, body in drops.calls if name == "putRecord")
        answer = send_again(host, alice, "putRecord", body)
        assert answer.status_code == 200
        assert answer.json()["cid"] == outcome.cid
        assert "commit" not in answer.json()

    async def test_a_replay_with_other_words_finds_the_record(self, world, alice):
        post = post_of()
        first, _ = await publish(world.host_of(alice), post, alice)
        world.store.delete_all()
        edited = post.model_copy(update={"title": "Mended"})
        again, _ = await publish(world.host_of(alice), edited, alice)
        assert (again.uri, again.cid, again.found) == (first.uri, first.cid, True)
        assert len(records_of(world, alice)) == 1

    async def test_the_same_post_under_another_createdat_is_found(self, world, alice):
        host = world.host_of(alice)
        post = post_of()
        earlier = network_write(world, alice, key_of(post, alice), frozen_before(post))
        outcome, lease = await publish(host, post, alice)
        assert (outcome.uri, outcome.found) == (record_uri(alice["did"], key_of(post, alice)), True)
        assert outcome.cid == earlier["cid"]
        assert lease.intents == []

    async def test_another_posts_record_is_stepped_over(self, world, alice):
        post, stranger = post_of(), post_of(2)
        network_write(world, alice, key_of(post, alice), frozen_before(stranger))
        outcome, _ = await publish(world.host_of(alice), post, alice)
        assert outcome.uri == record_uri(alice["did"], key_of(post, alice, generation=1))

    async def test_a_record_that_leads_nowhere_is_a_conflict(self, world, alice):
        post = post_of()
        network_write(world, alice, key_of(post, alice), {"text": "no link"})
        outcome, _ = await publish(world.host_of(alice), post, alice)
        assert isinstance(outcome, Permanent)

    async def test_what_another_tool_posted_an_hour_ago_is_adopted(self, world, alice):
        post = post_of(age_s=3600)
        uri = {"$type": "app.bsky.embed.external#external", "uri": post.url, "title": "T", "description": "D"}
        embed = {"$type": "app.bsky.embed.external", "external": uri}
        theirs = network_write(world, alice, None, {"text": "my new post", "embed": embed})
        for number in range(3):
            network_write(world, alice, None, {"text": f"something else {number}"})
        outcome, lease = await publish(world.host_of(alice), post, alice)
        assert outcome == Published(uri=theirs["uri"], cid=theirs["cid"], found=True)
        assert lease.intents == []

    async def test_it_is_deleted_once_and_for_all(self, world, alice):
        host = world.host_of(alice)
        post = post_of()
        outcome, lease = await publish(host, post, alice)
        delivery = replace(lease.delivery, action=Action.DELETE, uri=outcome.uri, cid=outcome.cid, intent=b"")
        for _ in range(2):
            deleted, _ = await host.attempt(delivery, post, lease.job)
            assert isinstance(deleted, Published)
        assert read(world, outcome.uri) is None

    async def test_what_was_changed_since_is_not_deleted(self, world, alice):
        host = world.host_of(alice)
        post = post_of()
        outcome, lease = await publish(host, post, alice)
        network_write(world, alice, key_of(post, alice), {"text": "changed"})
        delivery = replace(lease.delivery, action=Action.DELETE, uri=outcome.uri, cid=outcome.cid, intent=b"")
        deleted, _ = await host.attempt(delivery, post, lease.job)
        assert isinstance(deleted, Permanent)
        assert read(world, outcome.uri)["value"]["text"] == "changed"


def send_again(host, person, name, body):
    """The same bytes once more, past the publisher; the answer."""
    session = host.sessions._held[person["did"]].session
    headers = {
        "Authorization": f"Bearer {session.access.get_secret_value()}",
        "Content-Type": "application/json",
    }
    url = f"{session.pds}/xrpc/com.atproto.repo.{name}"
    return httpx.post(url, content=body, headers=headers, trust_env=False)


def frozen_before(post):
    """The record of `post` as an earlier life would have made it."""
    texts = texts_of(post, PLAIN_TEMPLATE)
    return dict(freeze(post, texts, dids={}, langs=(), created_at=1_700_000_000).records[0])


TEXT = "A sentence of some length about 字 and 👨‍👩‍👧‍👦. " * 15


class TestThread:
    def assert_whole(self, world, person, root_uri):
        """The thread as anybody may read it: in its order, each referring to what is there."""
        records = sorted(records_of(world, person), key=lambda record: record["uri"])
        assert [record["uri"] for record in records[:1]] == [root_uri]
        refs = [{"uri": record["uri"], "cid": record["cid"]} for record in records]
        for number, record in enumerate(records):
            assert record["cid"] == cid_of(record["value"])
            expected = {"root": refs[0], "parent": refs[number - 1]} if number else None
            assert record["value"].get("reply") == expected
        return records

    async def test_it_is_there_with_the_keys_and_cids_that_were_predicted(self, world, alice):
        post = post_of(text=TEXT, thread=True)
        outcome, lease = await publish(world.host_of(alice), post, alice)
        assert outcome == Published(
            uri=record_uri(alice["did"], key_of(post, alice)), cid=lease.intents[0]["cid"]
        )
        predicted = restore_intent(lease.intents[0]["intent"]).at(alice["did"], key_of(post, alice))
        records = self.assert_whole(world, alice, outcome.uri)
        assert [record["cid"] for record in records] == [record.cid for record in predicted]
        assert len(records) == 3

    async def test_an_answer_lost_after_the_commit_is_found_again(self, world, alice):
        drops = Drops(world.clock, "applyWrites")
        host = world.host_of(alice, transport=drops)
        post = post_of(text=TEXT, thread=True)
        first, lease = await publish(host, post, alice)
        assert (first.uri, first.found) == (record_uri(alice["did"], key_of(post, alice)), True)
        second, _ = await host.attempt(lease.delivery, post, lease.job)
        assert (second.uri, second.found) == (first.uri, True)
        assert drops.count("applyWrites") == 1
        assert len(self.assert_whole(world, alice, first.uri)) == 3

    async def test_sent_twice_it_fails_whole_like_a_server_in_trouble(self, world, alice):
        post = post_of(text=TEXT, thread=True)
        drops = Drops(world.clock, "nothing")
        host = world.host_of(alice, transport=drops)
        await publish(host, post, alice)
        (body,) = (body for name, body in drops.calls if name == "applyWrites")
        answer = send_again(host, alice, "applyWrites", body)
        assert answer.status_code == 500
        assert len(records_of(world, alice)) == 3

    async def test_a_replay_with_other_words_finds_it_and_adds_nothing(self, world, alice):
        post = post_of(text=TEXT, thread=True)
        first, _ = await publish(world.host_of(alice), post, alice)
        world.store.delete_all()
        longer = post.model_copy(update={"text": TEXT * 2})
        again, _ = await publish(world.host_of(alice), longer, alice)
        assert (again.uri, again.cid, again.found) == (first.uri, first.cid, True)
        assert len(records_of(world, alice)) == 3

    async def test_it_is_deleted_whole(self, world, alice):
        host = world.host_of(alice)
        post = post_of(text=TEXT, thread=True)
        outcome, lease = await publish(host, post, alice)
        delivery = replace(lease.delivery, action=Action.DELETE, uri=outcome.uri, cid=outcome.cid, intent=b"")
        for _ in range(2):
            deleted, _ = await host.attempt(delivery, post, lease.job)
            assert isinstance(deleted, Published)
        assert records_of(world, alice) == []


async def test_mentions_links_and_tags_lead_where_they_should(world, alice):
    bob = world.person()
    post = post_of(
        title=f"字 with @{bob['handle']}, @nobody-at-all.test", excerpt="#été at example.com, $AAPL"
    )
    outcome, _ = await publish(world.host_of(alice), post, alice)
    value = read(world, outcome.uri)["value"]
    text = value["text"].encode()
    shown = {}
    for facet in value["facets"]:
        index, (feature,) = facet["index"], facet["features"]
        words = text[index["byteStart"] : index["byteEnd"]].decode()
        shown[words] = feature.get("did") or feature.get("uri") or feature["tag"]
    assert shown == {
        f"@{bob['handle']}": bob["did"],
        "#été": "été",
        "example.com": "https://example.com",
        "$AAPL": "$AAPL",
        post.url: post.url,
    }
    assert outcome.degraded == ("@nobody-at-all.test could not be resolved: plain text",)


async def test_an_appview_shows_the_thread_to_its_readers(network, store):
    world = RealWorld(network, store)
    alice = world.person()
    try:
        outcome, _ = await publish(world.host_of(alice), post_of(text=TEXT, thread=True), alice)
        world.person()  # the AppView knows of all that came before
        parameters = {"uri": outcome.uri, "depth": 10}
        with plain_client(network.appview) as client:
            thread = client.get("/xrpc/app.bsky.feed.getPostThread", params=parameters).json()["thread"]
        texts = []
        while thread is not None:
            texts.append(thread["post"]["record"]["text"])
            thread = next(iter(thread.get("replies") or ()), None)
        assert len(texts) == 3
        assert " ".join(texts).replace(post_of().url, "").split() == TEXT.split()
    finally:
        await world.close()


def network_write(world, person, rkey, record):
    """Write as another tool does."""
    return world.network.do("write", account=person["name"], rkey=rkey, record=record)


class TestSessions:
    async def test_a_token_that_is_not_taken_is_refreshed(self, world, alice):
        drops = Drops(world.clock, "nothing")
        host = world.host_of(alice, transport=drops)
        await publish(host, post_of(1), alice)
        held = host.sessions._held[alice["did"]]
        spoiled = replace(held.session, access=SecretStr("garbage"))
        host.sessions._held[alice["did"]] = replace(held, session=spoiled)
        outcome, _ = await publish(host, post_of(2), alice)
        assert isinstance(outcome, Published)
        assert (drops.count("createSession"), drops.count("refreshSession")) == (1, 1)

    async def test_a_refresh_whose_answer_is_lost_is_made_again(self, world, alice):
        drops = Drops(world.clock, "refreshSession")
        host = world.host_of(alice, transport=drops)
        await publish(host, post_of(1), alice)
        session = host.sessions._held[alice["did"]].session
        login, deadline = host.login(alice["name"]), world.clock.steady() + 20
        with pytest.raises(Exception, match="did not answer"):
            await host.sessions.renewed(login, session, deadline)
        renewed = await host.sessions.renewed(login, session, deadline)
        assert renewed.refresh != session.refresh
        outcome, _ = await publish(host, post_of(2), alice)
        assert isinstance(outcome, Published)
        assert drops.count("createSession") == 1

    async def test_a_session_that_was_ended_takes_one_login(self, world, alice):
        drops = Drops(world.clock, "nothing")
        host = world.host_of(alice, transport=drops)
        await publish(host, post_of(1), alice)
        world.network.do("endSessions", account=alice["name"])
        held = host.sessions._held[alice["did"]]
        spoiled = replace(held.session, access=SecretStr("garbage"))
        host.sessions._held[alice["did"]] = replace(held, session=spoiled)
        outcome, _ = await publish(host, post_of(2), alice)
        assert isinstance(outcome, Published)
        assert drops.count("createSession") == 2

    async def test_a_wrong_password_is_tried_once(self, world, alice):
        drops = Drops(world.clock, "nothing")
        host = world.host_of(alice, transport=drops, password="not the one")
        for _ in range(3):
            outcome, _ = await publish(host, post_of(), alice)
            assert isinstance(outcome, Credentials)
        assert drops.count("createSession") == 1
        host.configure(world.accounts_of(alice))
        outcome, _ = await publish(host, post_of(), alice)
        assert isinstance(outcome, Published)

    async def test_a_deactivated_account_waits_for_a_person(self, world, alice):
        host = world.host_of(alice)
        await publish(host, post_of(1), alice)
        world.network.do("deactivate", account=alice["name"])
        outcome, _ = await publish(host, post_of(2), alice)
        assert isinstance(outcome, Credentials)
        assert "Could not find repo" in outcome.reason  # the first that is asked is the list of its records


class TestChange:
    async def test_a_changed_handle_goes_on_by_itself(self, world, alice):
        await publish(world.host_of(alice), post_of(1), alice)
        handle = f"{alice['name']}-renamed.test"
        world.network.do("changeHandle", account=alice["name"], handle=handle)
        outcome, _ = await publish(world.host_of(alice), post_of(2), alice)
        assert isinstance(outcome, Published)

    async def test_an_account_that_moved_goes_on_by_itself(self, world, alice):
        host = world.host_of(alice)
        before, _ = await publish(host, post_of(1, age_s=3600), alice)
        world.network.do("move", account=alice["name"])
        outcome, _ = await publish(host, post_of(2), alice)
        assert isinstance(outcome, Published)
        assert read(world, outcome.uri, pds="other")["cid"] == outcome.cid
        assert read(world, outcome.uri) is None
        # What was published before went along, and is found there.
        world.store.delete_all()
        fresh = world.host_of(alice, identifier=alice["did"])
        again, _ = await publish(fresh, post_of(1, age_s=1800), alice)
        assert (again.uri, again.found) == (before.uri, True)


async def test_what_an_account_may_still_write_is_told_without_a_trace(world, alice):
    """By a PDS that keeps to limits; the deletion that asks for them is taken, and deletes nothing."""
    host = world.host_of(alice)
    outcome, _ = await publish(host, post_of(), alice)
    before = records_of(world, alice)
    assert await host.publish.points(alice["name"]) is None, "this one has none"
    assert [record["uri"] for record in before] == [outcome.uri]
    assert records_of(world, alice) == before
    world.network.do("move", account=alice["name"])
    host = world.host_of(alice)
    first = await host.publish.points(alice["name"])
    assert 0 < first.remaining < first.limit
    assert 0 < first.resets_in_s <= 3600
    later = await host.publish.points(alice["name"])
    assert (later.limit, later.remaining < first.remaining) == (first.limit, True)

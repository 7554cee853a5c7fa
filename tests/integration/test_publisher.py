"""One post, one record: through lost answers, lost stores, foreign records and whatever a PDS says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.pds import HANG_AFTER, LOSE_ANSWER, LOSE_REQUEST, POST
from harness.upstream import Response, xrpc_error
from integration.publishing import (
    ALICE,
    BOB,
    LeaseOfTest,
    delivery_of,
    key_of,
    linking,
    post_of,
    publish,
    sent,
)
from proxy.errors import LeaseLost, StoreUnavailable
from proxy.syndication.attempt import Credentials, Permanent, Published, Transient, Wait
from proxy.syndication.intent import cid_of, restore_intent
from proxy.syndication.rkey import record_uri


@pytest.fixture
def host(world):
    return world.host()


class TestAFirstAttempt:
    async def test_the_record_is_at_the_predicted_uri_with_the_predicted_cid(self, host, alice):
        post = post_of(excerpt="What it is about")
        delivery, job = delivery_of(post)
        outcome, lease = await host.attempt(delivery, post, job)
        uri = record_uri(ALICE, key_of(post))
        assert outcome == Published(uri=uri, cid=lease.intents[0]["cid"], found=False)
        value, cid = alice.records[key_of(post)]
        assert cid == outcome.cid == cid_of(value)
        assert value["text"] == f"Post 1\n\nWhat it is about\n\n{post.url}"
        assert value["langs"] == ["en"]

    async def test_the_intent_is_stored_before_anything_is_sent(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        outcomes = []
        lease = LeaseOfTest(delivery, job, clock=world.clock)
        lease.on_intend = lambda: outcomes.append(len(sent(world)))
        await host.publish(delivery, post, lease)
        assert outcomes == [0]
        (intent,) = lease.intents
        assert (intent["did"], intent["rkey"], intent["generation"]) == (ALICE, key_of(post), 0)

    async def test_it_is_sent_as_it_was_intended_and_only_where_there_is_nothing(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        _, lease = await host.attempt(delivery, post, job)
        (call,) = sent(world)
        body = call.json()
        assert body["record"] == restore_intent(lease.intents[0]["intent"]).records[0]
        assert body["swapRecord"] is None
        assert set(body) == {"repo", "collection", "rkey", "record", "swapRecord"}
        assert (body["repo"], body["collection"], body["rkey"]) == (ALICE, POST, key_of(post))

    async def test_nothing_is_sent_without_the_intent(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        for trouble in (LeaseLost("another's"), StoreUnavailable("away")):
            lease = LeaseOfTest(delivery, job, clock=world.clock)

            def fail(trouble=trouble):
                raise trouble

            lease.on_intend = fail
            with pytest.raises(type(trouble)):
                await host.publish(delivery, post, lease)
        assert sent(world) == []

    async def test_nothing_is_sent_after_the_lease(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        lease = LeaseOfTest(delivery, job, clock=world.clock)
        lease.over = True
        with pytest.raises(LeaseLost):
            await host.publish(delivery, post, lease)
        assert sent(world) == []

    async def test_the_generation_that_the_queue_remembers_decides_the_key(self, host):
        post = post_of()
        delivery, job = delivery_of(post)
        outcome, _ = await host.attempt(delivery, post, replace(job, generation=2))
        assert outcome.uri == record_uri(ALICE, key_of(post, 2))
        other = post_of(2)
        delivery, job = delivery_of(other)
        outcome, _ = await host.attempt(replace(delivery, generation=3), other, job)
        assert outcome.uri == record_uri(ALICE, key_of(other, 3))

    async def test_the_first_publication_that_was_seen_decides_the_key(self, host):
        first = post_of(age_s=500)
        delivery, job = delivery_of(first)
        outcome, _ = await host.attempt(delivery, post_of(), job)
        assert outcome.uri == record_uri(ALICE, key_of(first))

    async def test_an_account_without_a_password_here_is_left_to_others(self, host):
        assert isinstance(await publish(host, post_of(), account="unknown"), Credentials)


class TestWhatIsLost:
    async def again(self, host, lease, post, job):
        """The next attempt, after the queue stored what the lease was told."""
        return await host.attempt(lease.delivery, post, job)

    @pytest.mark.parametrize("fault", [LOSE_REQUEST, xrpc_error(503, "Busy")], ids=str)
    async def test_it_is_repeated_byte_for_byte(self, world, host, fault):
        post = post_of()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", fault)
        outcome, lease = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Transient)
        assert outcome.counts_for_breaker
        outcome, second = await self.again(world.host(), lease, post, job)
        assert outcome == Published(uri=record_uri(ALICE, key_of(post)), cid=lease.intents[0]["cid"])
        assert len({call.body for call in sent(world)}) == 1
        assert len(sent(world)) == 2
        assert second.intents == lease.intents
        assert len(world.pds.commits) == 1

    async def test_what_landed_is_found_by_the_same_attempt(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_ANSWER)
        outcome, lease = await host.attempt(delivery, post, job)
        uri = record_uri(ALICE, key_of(post))
        assert outcome == Published(uri=uri, cid=lease.intents[0]["cid"], found=True)
        assert len(sent(world)) == len(world.pds.commits) == 1

    async def test_what_cannot_be_looked_at_is_found_by_the_next(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_ANSWER)
        world.pds.fail("getRecord", LOSE_ANSWER)
        outcome, lease = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Transient)
        outcome, second = await self.again(world.host(), lease, post, job)
        uri = record_uri(ALICE, key_of(post))
        assert outcome == Published(uri=uri, cid=lease.intents[0]["cid"], found=True)
        assert second.intents == []
        assert len(sent(world)) == len(world.pds.commits) == 1

    async def test_an_edit_meanwhile_changes_nothing_of_it(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_REQUEST)
        _, lease = await host.attempt(delivery, post, job)
        edited = post.model_copy(update={"title": "Another title"})
        await self.again(host, lease, edited, job)
        first, repeated = sent(world)
        assert first.body == repeated.body

    async def test_its_key_stays_whatever_is_known_of_the_post_by_now(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_ANSWER)
        _, lease = await host.attempt(delivery, post, job)
        known = replace(job, first_published_at_ms=job.first_published_at_ms - 86_400_000)
        outcome, _ = await host.attempt(lease.delivery, post, known)
        assert (outcome.uri, outcome.found) == (record_uri(ALICE, key_of(post)), True)

    async def test_a_pds_that_hangs_is_given_up_with_the_lease(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        await publish(host, post_of(2))
        world.pds.fail("putRecord", HANG_AFTER)
        outcome, lease = await host.attempt(delivery, post, job, for_s=0.3)
        assert isinstance(outcome, Transient)
        assert lease.ends_at <= world.clock.steady() < lease.ends_at + 5
        outcome, _ = await self.again(host, lease, post, job)
        assert outcome.found

    @pytest.mark.parametrize(
        "answer",
        [
            Response(status=502, body=b"<html>"),
            Response(status=403, body=b"<html>no", headers={"Content-Type": "text/html"}),
            Response(status=200, body=b'{"uri": 5}'),
            Response(status=302, headers={"Location": "https://elsewhere.example"}, body=b""),
            Response(status=200, body=b'{"uri": "at://x", "cid": "y", "pad": "%s"}' % (b"x" * 3_000_000)),
        ],
        ids=["gateway", "no XRPC", "no answer of a PDS", "redirect", "too large"],
    )
    async def test_what_is_no_answer_of_a_pds_is_trouble_on_the_way(self, world, host, answer):
        world.pds.fail("putRecord", answer)
        outcome = await publish(host, post_of())
        assert isinstance(outcome, Transient)
        assert outcome.counts_for_breaker

    async def test_a_server_that_says_when_is_asked_then(self, world, host):
        world.pds.fail("putRecord", xrpc_error(503, "Busy", headers={"Retry-After": "42"}))
        outcome = await publish(host, post_of())
        assert isinstance(outcome, Transient)
        assert outcome.retry_after_s == 42

    @pytest.mark.parametrize("age_s", [0, 3600])
    async def test_the_queue_forgotten_it_is_found_again(self, world, host, age_s):
        post = post_of(age_s=age_s)
        first = await publish(host, post)
        world.store.delete_all()
        edited = post.model_copy(update={"title": "Mended"})
        again = await publish(world.host(), edited)
        assert (again.uri, again.cid, again.found) == (first.uri, first.cid, True)
        assert len(world.pds.commits) == 1

    async def test_the_queue_forgotten_and_the_date_edited_it_is_found_by_its_link(self, world, host):
        first = await publish(host, post_of(age_s=3600))
        world.store.delete_all()
        again = await publish(world.host(), post_of(age_s=1800))
        assert (again.uri, again.cid, again.found) == (first.uri, first.cid, True)
        assert len(sent(world)) == 1


class TestAdoption:
    async def test_what_another_tool_posted_is_adopted(self, world, host, alice):
        post = post_of(age_s=3600)
        cid = world.pds.put(ALICE, "3kaaaaaaaaaa2", linking(f"{post.url}/?utm_source=tool"))
        delivery, job = delivery_of(post)
        outcome, lease = await host.attempt(delivery, post, job)
        assert outcome == Published(uri=record_uri(ALICE, "3kaaaaaaaaaa2"), cid=cid, found=True)
        assert len(alice.records) == 1
        assert lease.intents == []

    @pytest.mark.parametrize(
        "record",
        [
            linking("https://blog.example/other"),
            linking("https://blog.example/1", reply={"root": {}, "parent": {}}),
            linking("https://blog.example/1", embed={"external": {"uri": "https://blog.example/roundup"}}),
            linking("https://blog.example/1#part"),
            {"text": 5},
        ],
        ids=["another post", "a reply", "a roundup", "another post on the page", "no record"],
    )
    async def test_what_is_not_the_post_is_left_alone(self, world, host, alice, record):
        world.pds.put(ALICE, "3kaaaaaaaaaa2", record)
        outcome = await publish(host, post_of(age_s=3600))
        assert not outcome.found
        assert len(alice.records) == 2

    async def test_it_is_found_among_the_last_hundred(self, world, host):
        post = post_of(age_s=3600)
        for number in range(99):
            world.pds.put(ALICE, f"3z{number:011}", linking(f"https://blog.example/other/{number}"))
        world.pds.put(ALICE, "3kaaaaaaaaaa2", linking(post.url))
        assert (await publish(host, post)).uri.endswith("/3kaaaaaaaaaa2")
        world.pds.put(ALICE, "3zzzzzzzzzzz2", linking("https://blog.example/one/more"))
        assert not (await publish(host, post)).uri.endswith("/3kaaaaaaaaaa2")

    async def test_what_may_have_been_sent_is_not_looked_for(self, world, host):
        post = post_of(age_s=3600)
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_REQUEST)
        _, lease = await host.attempt(delivery, post, job)
        world.pds.put(ALICE, "3kaaaaaaaaaa2", linking(post.url))
        outcome, _ = await host.attempt(lease.delivery, post, job)
        assert outcome.uri == record_uri(ALICE, key_of(post))
        assert len(world.pds.calls("listRecords")) == 1

    @pytest.mark.parametrize("age_s", [0, 3600])
    async def test_a_lookup_that_fails_sends_nothing(self, world, host, age_s):
        world.pds.fail("listRecords", LOSE_ANSWER)
        assert isinstance(await publish(host, post_of(age_s=age_s)), Transient)
        assert sent(world) == []


class TestARecordInTheWay:
    async def test_one_that_leads_to_the_post_is_the_post(self, world, host):
        post = post_of()
        cid = world.pds.put(ALICE, key_of(post), linking(post.url))
        outcome = await publish(host, post)
        assert outcome == Published(uri=record_uri(ALICE, key_of(post)), cid=cid, found=True)

    async def test_another_posts_is_stepped_over(self, world, host, alice):
        post = post_of()
        for generation in (0, 1):
            world.pds.put(ALICE, key_of(post, generation), linking(f"https://blog.example/x{generation}"))
        delivery, job = delivery_of(post)
        outcome, lease = await host.attempt(delivery, post, job)
        assert outcome.uri == record_uri(ALICE, key_of(post, 2))
        # The keys were seen to be taken before anything was sent there.
        assert [intent["generation"] for intent in lease.intents] == [2]
        assert len(sent(world)) == 1
        assert len(alice.records) == 3

    async def test_the_step_holds_for_the_next_attempt(self, world, host):
        post = post_of()
        world.pds.put(ALICE, key_of(post), linking("https://blog.example/x"))
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", xrpc_error(400, "InvalidSwap"), LOSE_ANSWER)
        _, lease = await host.attempt(delivery, post, job)
        outcome, _ = await host.attempt(lease.delivery, post, job)
        assert outcome.found
        assert outcome.uri == record_uri(ALICE, key_of(post, 1))

    async def test_one_that_leads_nowhere_is_a_conflict(self, world, host):
        posts = post_of(1), post_of(2)
        record = {"$type": POST, "text": "no link", "createdAt": "2026-01-01T00:00:00Z"}
        for post in posts:
            world.pds.put(ALICE, key_of(post), record)
        first, second = [await publish(host, post) for post in posts]
        assert isinstance(first, Permanent)
        # The same words for both, so that they are counted as one reason.
        assert first == second

    async def test_one_that_is_gone_by_the_time_is_tried_again(self, world, host):
        world.pds.fail("putRecord", xrpc_error(400, "InvalidSwap"))
        assert isinstance(await publish(host, post_of()), Transient)

    async def test_five_in_a_row_are_too_many(self, world, host):
        post = post_of()
        for generation in range(5):
            world.pds.put(ALICE, key_of(post, generation), linking(f"https://blog.example/x{generation}"))
        assert isinstance(await publish(host, post), Permanent)


class TestWhatThePdsSays:
    async def test_a_bad_record_is_refused_for_good_with_the_reason(self, world, host):
        fault = xrpc_error(400, "InvalidRequest", "Invalid record: grapheme too big at $.record.text")
        world.pds.fail("putRecord", fault)
        outcome = await publish(host, post_of())
        assert isinstance(outcome, Permanent)
        assert "grapheme too big at $.record.text" in outcome.reason

    async def test_a_missing_blob_is_for_good_too(self, world, host):
        world.pds.fail("putRecord", xrpc_error(400, "BlobNotFound", "Could not find blob: b"))
        assert isinstance(await publish(host, post_of()), Permanent)

    @pytest.mark.parametrize("trouble", ["AccountTakedown", "AccountDeactivated"])
    async def test_a_suspended_account_waits_for_a_person(self, world, host, alice, trouble):
        await publish(host, post_of(1))
        alice.trouble = trouble
        reads = world.directory.reads(ALICE)
        outcome = await publish(host, post_of(2))
        assert isinstance(outcome, Credentials)
        assert "Could not find repo" in outcome.reason
        assert world.directory.reads(ALICE) == reads + 1  # it may have moved
        alice.trouble = ""
        world.pds.fail("putRecord", xrpc_error(400, trouble))
        outcome = await publish(host, post_of(3))
        assert isinstance(outcome, Credentials)
        assert trouble in outcome.reason

    async def test_an_expired_token_is_refreshed_on_the_way(self, world, host):
        await publish(host, post_of(1))
        world.pds.expire(ALICE)
        outcome = await publish(host, post_of(2))
        assert isinstance(outcome, Published)
        assert (world.logins, world.refreshes) == (1, 1)
        first, second = sent(world)[-2:]
        assert first.body == second.body

    async def test_a_pds_that_takes_no_token_is_not_asked_for_ever(self, world, host):
        world.pds.fail("putRecord", *[xrpc_error(400, "ExpiredToken")] * 9)
        assert isinstance(await publish(host, post_of()), Transient)
        assert len(sent(world)) == 4
        assert world.logins == 1


class TestLimits:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Retry-After": "120"},
            {"RateLimit-Reset": "120"},
            {"RateLimit-Remaining": "0", "RateLimit-Reset": "120"},
        ],
    )
    async def test_a_429_waits_and_nobody_asks_for_the_account_meanwhile(self, world, host, headers):
        world.pds.fail("putRecord", xrpc_error(429, "RateLimitExceeded", headers=headers))
        outcome = await publish(host, post_of(1))
        assert isinstance(outcome, Wait)
        assert outcome.for_s == pytest.approx(120, abs=1)
        assert outcome.reason == "rate_limited"
        asked = len(world.pds.requests)
        again = await publish(host, post_of(2))
        assert isinstance(again, Wait)
        assert again.for_s == pytest.approx(120, abs=2)
        assert len(world.pds.requests) == asked
        # Accounts are islands, on the same PDS too.
        assert isinstance(await publish(host, post_of(3), account="bob"), Published)

    async def test_a_429_that_says_nothing_waits_a_minute(self, world, host):
        world.pds.fail("putRecord", xrpc_error(429, "RateLimitExceeded"))
        assert (await publish(host, post_of())).for_s == 60

    async def test_the_last_request_of_a_window_is_known_to_be_the_last(self, world, host):
        await publish(host, post_of(0))
        reset = {"RateLimit-Remaining": "0", "RateLimit-Reset": "300"}
        world.pds.chaos = lambda call: world.pds.headers.update(reset if call.name == "putRecord" else {})
        assert isinstance(await publish(host, post_of(1)), Published)
        outcome = await publish(host, post_of(2))
        assert isinstance(outcome, Wait)
        assert outcome.for_s == pytest.approx(300, abs=2)


class TestAnotherAccount:
    async def test_what_may_have_been_sent_to_one_is_never_sent_to_another(self, world, host):
        post = post_of()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_ANSWER)
        _, lease = await host.attempt(delivery, post, job)
        other = world.host(accounts=world.accounts(identifier="bob.test"))
        outcome, _ = await other.attempt(lease.delivery, post, job)
        assert isinstance(outcome, Permanent)
        assert world.pds.accounts[BOB].records == {}

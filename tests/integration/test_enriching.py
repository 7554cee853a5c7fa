"""Posts with what their pages and pictures give, and without what these do to us instead."""

from __future__ import annotations

import functools

import pytest

from harness.pds import LOSE_ANSWER, LOSE_REQUEST, blobs_in
from harness.pictures import BLUE, animated, near, noise, picture, turned
from harness.upstream import Response, xrpc_error
from integration.publishing import ALICE, BOB, PASSWORD, delivery_of, key_of
from integration.web import html, jpeg, published, record_of, shown, site
from proxy.errors import OutsideRefused
from proxy.syndication.attempt import Permanent, Published, Transient, Wait
from proxy.syndication.direct import ENRICH_S, DirectPublisher
from proxy.syndication.embedding import BLOB_LIFETIME_S
from proxy.syndication.intent import restore_intent


class TestCards:
    async def test_a_page_gives_its_card_and_thumbnail(self, host, web, alice):
        post = web.post(title=None, text="look")
        outcome = await published(host, post)
        external = record_of(alice, post)["embed"]["external"]
        assert external["uri"] == post.url
        assert external["title"] == "The page's title"
        assert external["description"] == "What it is about"
        assert shown(alice, external["thumb"]).size == (400, 200)
        assert outcome.degraded == ()

    async def test_what_the_cms_sent_comes_first(self, host, web, alice):
        post = web.post(title="From the CMS", excerpt="Its excerpt")
        await published(host, post)
        external = record_of(alice, post)["embed"]["external"]
        assert (external["title"], external["description"]) == ("From the CMS", "Its excerpt")
        assert external["thumb"]

    async def test_a_picture_is_found_where_the_page_was_redirected_to(self, host, web, alice):
        web.at["/old"] = Response(status=301, body=b"", headers={"Location": "/new/a"})
        web.at["/new/a"] = html('<meta property="og:image" content="cat.jpg">')
        web.at["/new/cat.jpg"] = web.at["/cat.jpg"]
        post = web.post(path="/old")
        await published(host, post)
        assert record_of(alice, post)["embed"]["external"]["thumb"]

    async def test_a_page_with_nothing_in_it_gives_the_name_of_its_host(self, host, web, alice):
        web.at["/a"] = html("<p>nothing")
        post = web.post(title=None, text="look")
        outcome = await published(host, post)
        external = record_of(alice, post)["embed"]["external"]
        assert external == {"uri": post.url, "title": "blog.example", "description": ""}
        assert outcome.degraded == ()

    async def test_the_first_of_a_thread_has_it(self, host, web, alice):
        post = web.post(title=None, text="word " * 100, thread=True)
        await published(host, post)
        embeds = [record.get("embed") for _, (record, _) in sorted(alice.records.items())]
        assert embeds[0]["external"]["thumb"]
        assert embeds[1:] == [None] * (len(embeds) - 1)
        assert len(embeds) > 1


class TestPictures:
    def post(self, web, *paths, **fields):
        images = [{"url": web.url(path), "alt": f"alt of {path}"} for path in paths]
        return web.post(images=images, **fields)

    async def test_up_to_four_are_shown_instead_of_the_card(self, host, web, alice):
        for number in range(5):
            web.at[f"/{number}.jpg"] = jpeg(picture(size=(40 + number, 20)))
        post = self.post(web, *(f"/{number}.jpg" for number in range(5)))
        outcome = await published(host, post)
        embed = record_of(alice, post)["embed"]
        assert embed["$type"] == "app.bsky.embed.images"
        assert [image["alt"] for image in embed["images"]] == [f"alt of /{n}.jpg" for n in range(4)]
        assert [image["aspectRatio"] for image in embed["images"]] == [
            {"width": 40 + number, "height": 20} for number in range(4)
        ]
        assert [shown(alice, image["image"]).size for image in embed["images"]] == [
            (40 + number, 20) for number in range(4)
        ]
        assert outcome.degraded == ("1 of the pictures was left out",)
        assert web.fetched("/a") == 0

    async def test_they_are_turned_and_know_no_secrets(self, host, web, alice):
        web.at["/6.jpg"] = jpeg(turned(6))
        post = self.post(web, "/6.jpg")
        await published(host, post)
        (image,) = record_of(alice, post)["embed"]["images"]
        assert image["aspectRatio"] == {"width": 20, "height": 40}
        assert near(shown(alice, image["image"]).getpixel((16, 3)), BLUE)
        assert not any(b"SECRET" in blob for blob in alice.blobs.values())

    @pytest.mark.parametrize(
        "source", [picture("WEBP"), animated("GIF"), animated("WEBP"), noise((1200, 900), "JPEG")]
    )
    async def test_webp_animations_and_heavy_ones_are_made_fit(self, host, web, alice, source):
        web.at["/x"] = jpeg(source, "application/octet-stream")
        post = self.post(web, "/x")
        outcome = await published(host, post)
        (image,) = record_of(alice, post)["embed"]["images"]
        assert shown(alice, image["image"]).format == "JPEG"
        assert outcome.degraded == ()

    async def test_a_bad_one_is_left_out(self, host, web, alice):
        web.at["/bad.jpg"] = jpeg(b"no picture")
        post = self.post(web, "/bad.jpg", "/cat.jpg", "/none.jpg")
        outcome = await published(host, post)
        (image,) = record_of(alice, post)["embed"]["images"]
        assert image["alt"] == "alt of /cat.jpg"
        assert outcome.degraded == (
            "picture 1: is no JPEG, PNG, WebP, GIF or AVIF",
            "picture 3: blog.example answered 404",
        )

    async def test_without_any_there_is_the_card(self, host, web, alice):
        post = self.post(web, "/none.jpg")
        outcome = await published(host, post)
        assert record_of(alice, post)["embed"]["external"]["thumb"]
        assert outcome.degraded == ("picture 1: blog.example answered 404",)

    async def test_one_picture_shown_twice_is_uploaded_under_both_alts(self, host, web, alice):
        post = self.post(web, "/cat.jpg", "/cat.jpg")
        await published(host, post)
        assert len(record_of(alice, post)["embed"]["images"]) == 2


class TestWhatASiteMayFetch:
    async def test_its_own_hosts_may_be_private(self, web):
        post = web.post()
        hosts = (f"blog.example:{web.server.port}",)
        enricher = web.enricher(allowed=())
        given = await enricher.enrich(post, site(hosts=hosts), web.clock.steady() + 20)
        assert given.picture == web.url("/cat.jpg")
        other = await enricher.enrich(post, site(name="other"), web.clock.steady() + 20)
        assert other.picture == ""
        assert "no public address" in other.degraded[0]

    async def test_a_picture_at_hand_is_not_for_other_sites(self, web):
        hosts = (f"blog.example:{web.server.port}",)
        enricher, url = web.enricher(allowed=()), web.url("/cat.jpg")

        async def ask(of):
            return await enricher.picture(of, url, edge=100, deadline_at=web.clock.steady() + 20)

        first = await ask(site(hosts=hosts))
        assert await ask(site(hosts=hosts)) is first
        assert web.fetched("/cat.jpg") == 1
        with pytest.raises(OutsideRefused):
            await ask(site(name="other"))


class TestWithoutTheQueue:
    async def test_a_cms_that_waits_does_not_wait_for_a_page(self, host, web, alice):
        await published(host, web.post(1))
        web.at["/slow"] = Response(hang=True)
        publish = functools.partial(host.publish, enrich_s=ENRICH_S)
        direct = DirectPublisher(
            publish, host.sessions, lambda: host.accounts, web.clock, closed=lambda account: False
        )
        post = web.post(2, path="/slow")
        outcome = (await direct(host.accounts.sites["blog"], post, ["main"]))["main"]
        assert outcome.degraded == ("the page: blog.example did not answer in time",)
        assert record_of(alice, post)["embed"]["external"]["title"] == "Post 2"


class TestUploads:
    async def test_a_picture_is_uploaded_once_for_each_account(self, world, host, web, alice):
        bob = world.pds.host(BOB, "bob.test", PASSWORD)
        post = web.post()
        for account in ("main", "bob"):
            delivery, job = delivery_of(post, account)
            outcome, _ = await host.attempt(delivery, post, job)
            assert isinstance(outcome, Published)
        assert len(world.pds.calls("uploadBlob")) == 2
        assert alice.blobs == bob.blobs
        assert web.fetched("/cat.jpg") == 1

    async def test_what_was_frozen_is_sent_again_as_it_was(self, world, host, web, alice):
        post = web.post()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_REQUEST)
        outcome, lease = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Transient)
        # Whatever becomes of the page meanwhile.
        web.at.clear()
        outcome, _ = await host.attempt(lease.delivery, post, job)
        assert isinstance(outcome, Published)
        first, second = (call.body for call in world.pds.calls("putRecord"))
        assert first == second
        assert len(world.pds.calls("uploadBlob")) == 1

    async def test_a_lost_answer_is_found_with_its_pictures(self, world, host, web, alice):
        world.pds.fail("putRecord", LOSE_ANSWER)
        post = web.post()
        outcome = await published(host, post)
        assert outcome.found
        assert len(world.pds.commits) == 1

    async def test_after_45_minutes_it_is_uploaded_again(self, world, host, web, alice):
        post = web.post()
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_REQUEST)
        _, lease = await host.attempt(delivery, post, job)
        alice.blobs.clear()
        web.clock.ahead_s = BLOB_LIFETIME_S + 1
        # Another process, which has to fetch the picture again.
        other = world.host(enricher=web.enricher())
        outcome, again = await other.attempt(lease.delivery, post, job)
        assert isinstance(outcome, Published)
        assert outcome.degraded == ()
        first, second = (call.body for call in world.pds.calls("putRecord"))
        assert first == second
        assert len(world.pds.calls("uploadBlob")) == 2
        assert restore_intent(again.delivery.intent).uploaded_at == pytest.approx(web.clock.wall(), abs=60)

    @pytest.mark.parametrize("kind", ["card", "pictures"])
    async def test_what_can_be_had_no_more_is_left_out(self, world, host, web, alice, kind):
        images = [{"url": web.url("/cat.jpg"), "alt": "a cat"}] if kind == "pictures" else []
        post = web.post(images=images)
        delivery, job = delivery_of(post)
        world.pds.fail("putRecord", LOSE_REQUEST)
        _, lease = await host.attempt(delivery, post, job)
        alice.blobs.clear()
        web.at.clear()
        web.clock.ahead_s = BLOB_LIFETIME_S + 1
        outcome, again = await world.host(enricher=web.enricher()).attempt(lease.delivery, post, job)
        assert isinstance(outcome, Published)
        record = record_of(alice, post)
        assert record["embed"]["external"]["title"] == "Post 1"
        assert not list(blobs_in(record))
        (said,) = outcome.degraded
        assert said.startswith("the pictures were refused: ")
        assert "BlobNotFound" in said
        assert again.delivery.cid == outcome.cid

    async def test_a_post_that_is_refused_without_them_too_is_refused(self, world, host, web, alice):
        refusal = xrpc_error(400, "InvalidRequest", "Invalid record")
        world.pds.fail("putRecord", refusal, refusal)
        post = web.post()
        delivery, job = delivery_of(post)
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Permanent)
        assert len(world.pds.calls("putRecord")) == 2

    async def test_pictures_that_the_pds_refuses_are_left_out(self, world, host, web, alice):
        refusal = xrpc_error(413, "PayloadTooLarge", "request entity too large")
        world.pds.fail("uploadBlob", refusal)
        post = web.post()
        outcome = await published(host, post)
        assert "thumb" not in record_of(alice, post)["embed"]["external"]
        assert "PayloadTooLarge" in outcome.degraded[0]

    async def test_a_pds_that_has_trouble_with_pictures_gets_another_chance(self, world, host, web, alice):
        trouble = Response(status=500, body=b'{"error": "InternalServerError"}')
        world.pds.fail("uploadBlob", trouble, trouble)
        post = web.post()
        delivery, job = delivery_of(post)
        outcome, lease = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Transient)
        assert lease.intents == []
        outcome = await published(host, post, failures=1)
        assert "500" in outcome.degraded[0]

    async def test_a_pds_that_is_away_is_waited_for_with_the_picture(self, world, host, web, alice):
        post = web.post()
        delivery, job = delivery_of(post)
        await published(host, web.post(2))  # so that there is a session
        world.pds.fail("uploadBlob", LOSE_REQUEST)
        outcome, _ = await host.attempt(delivery, post, job)
        assert isinstance(outcome, Transient)
        await published(host, post)
        assert record_of(alice, post)["embed"]["external"]["thumb"]

    @pytest.mark.parametrize(("wait_s", "waits"), [(30, True), (7200, False)])
    async def test_a_budget_of_pictures_is_waited_for_if_it_is_soon(self, world, host, web, wait_s, waits):
        busy = xrpc_error(429, "RateLimitExceeded", "Rate Limit Exceeded")
        busy.headers["Retry-After"] = str(wait_s)
        world.pds.fail("uploadBlob", busy)
        post = web.post()
        delivery, job = delivery_of(post)
        outcome, _ = await host.attempt(delivery, post, job)
        if waits:
            assert isinstance(outcome, Wait)
            assert outcome.for_s == wait_s
        else:
            assert isinstance(outcome, Published)
            assert "429" in outcome.degraded[0]

    async def test_nothing_of_it_happens_for_a_post_that_is_there(self, world, host, web, alice):
        post = web.post()
        await published(host, post)
        uploads, fetches = len(world.pds.calls("uploadBlob")), len(web.server.requests)
        outcome = await published(host, post)
        assert outcome.found
        assert (len(world.pds.calls("uploadBlob")), len(web.server.requests)) == (uploads, fetches)
        assert list(alice.records) == [key_of(post)]
        assert ALICE in outcome.uri

"""The widget's pages and files over HTTP: a feed's page is answered as the feed is."""

from __future__ import annotations

import gzip
import re
from dataclasses import replace

import brotli
import pytest

from harness.proxy import feed
from harness.upstream import json_response, xrpc_error
from proxy.version import VERSION
from proxy.widget.script import RELEASED, current_script

DID = "did:plc:alice"
# The question that the script asks, so that pages and widgets share an answer.
SAME_FEED = feed(limit=30, filter="posts_and_author_threads", includePins="true")
OF_THE_FEED = ("age", "cache-control", "feed-updated", "feed-updated-at", "access-control-allow-origin")


def post(text: str, number: int) -> dict[str, object]:
    author = {"did": DID, "handle": "alice.test", "displayName": "Alice <b>"}
    return {
        "post": {"uri": f"at://{DID}/app.bsky.feed.post/{number}", "author": author, "record": {"text": text}}
    }


@pytest.fixture
def alice(upstream):
    """The upstream has a feed of 40 posts, of which it gives as many as are asked for."""

    def answer(request):
        if "getAuthorFeed" not in request.target and "Feed" not in request.path:
            return xrpc_error(400, "InvalidRequest", "Profile not found")
        limit = int(request.params["limit"][0])
        return json_response({"feed": [post(f"post {n}", n) for n in range(min(40, limit))]})

    upstream.answer = answer
    return upstream


def articles(html: str) -> int:
    return html.count("<article")


class TestEmbed:
    async def test_it_is_answered_as_the_feed_is(self, start, alice, clock):
        async with start(clock=clock) as proxy:
            first = await proxy.get("/embed/alice.test")
            assert first.headers["cache-status"] == "feedproxy; fwd=uri-miss; fwd-status=200; stored"
            await proxy.pass_time(200)
            page, same = await proxy.get("/embed/alice.test"), await proxy.get(SAME_FEED)
            assert alice.count == 1
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert page.headers["cache-status"] == same.headers["cache-status"]
            assert page.headers["feed-updated"] == "updated 3 minutes ago"
            for name in OF_THE_FEED:
                assert page.headers[name] == same.headers[name]
            # By which the script sees that it need not paint anew.
            assert f'data-key="{same.headers["etag"].strip(chr(34)).partition("-")[0]}"' in page.text

    async def test_a_limit_is_kept_and_few_sizes_are_asked_for(self, start, alice):
        async with start() as proxy:
            for wish, expected in (
                ("", 10),
                ("?limit=3", 3),
                ("?limit=30", 30),
                ("?limit=0", 10),
                ("?limit=x", 10),
            ):
                assert articles((await proxy.get(f"/embed/alice.test{wish}")).text) == expected
            assert alice.count == 1
            assert articles((await proxy.get("/embed/alice.test?limit=31")).text) == 31
            assert articles((await proxy.get("/embed/alice.test?limit=1000")).text) == 40
            assert alice.count == 2

    async def test_who_has_it_is_told_so(self, start, alice):
        async with start() as proxy:
            first = await proxy.get("/embed/alice.test", accept_encoding="br")
            assert first.headers["content-encoding"] == "br"
            again = await proxy.get(
                "/embed/alice.test", accept_encoding="br", if_none_match=first.headers["etag"]
            )
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
            other = await proxy.get("/embed/alice.test?limit=3", if_none_match=first.headers["etag"])
            assert other.status_code == 200

    async def test_head_is_the_head_alone(self, start, alice):
        async with start() as proxy:
            whole = await proxy.get("/embed/alice.test")
            head = await proxy.client.head("/embed/alice.test")
            assert head.content == b""
            assert head.headers["content-length"] == whole.headers["content-length"]

    async def test_a_new_feed_is_a_new_page(self, start, alice, clock):
        async with start(clock=clock, STALE_WHILE_REVALIDATE=0) as proxy:
            first = await proxy.get("/embed/alice.test")
            alice.answer = lambda _: json_response({"feed": [post("something new", 99)]})
            await proxy.pass_time(3600)
            second = await proxy.get("/embed/alice.test")
            assert ("something new" in first.text, "something new" in second.text) == (False, True)
            assert first.headers["etag"] != second.headers["etag"]

    async def test_an_outage_shows_the_old_page_with_its_age(self, start, alice, clock):
        async with start(clock=clock, STALE_WHILE_REVALIDATE=0) as proxy:
            fresh = await proxy.get("/embed/alice.test")
            assert 'data-stale=""' not in fresh.text
            await alice.stop()
            await proxy.pass_time(3600)
            stale = await proxy.get("/embed/alice.test")
            assert (stale.status_code, articles(stale.text)) == (200, 10)
            assert stale.headers["feed-updated"] == "updated an hour ago"
            assert 'data-stale=""' in stale.text
            updated = re.search(r'<time datetime="([^"]+)">[^<]* UTC</time>', stale.text)
            assert updated[1][:16] == stale.headers["feed-updated-at"][:16]

    async def test_without_anything_it_is_a_friendly_line_and_a_link(self, start, upstream):
        upstream.answer = lambda _: xrpc_error(503, "InternalServerError")
        async with start(RETRY_MAX=1) as proxy:
            for kind in ("", "?fragment=1"):
                page = await proxy.get(f"/embed/alice.test{kind}")
                assert page.status_code in (502, 503)
                assert page.headers["cache-control"] == "no-store"
                assert "Nothing to show here at the moment." in page.text
                assert 'href="https://bsky.app/profile/alice.test"' in page.text
                assert "<bluesky-feed" in page.text  # the script goes on where it can

    async def test_what_the_upstream_does_not_know_is_said_and_kept_for_a_while(self, start, upstream):
        upstream.answer = lambda _: xrpc_error(400, "InvalidRequest", "Profile not found")
        async with start() as proxy:
            pages = [await proxy.get("/embed/nobody.test") for _ in range(3)]
            assert {page.status_code for page in pages} == {400}
            assert "max-age" in pages[0].headers["cache-control"]
            # One for the feed, and whatever the feed's own walk asks; pages add none.
            asked = upstream.count
            await proxy.get("/embed/nobody.test?limit=5")
            assert upstream.count == asked

    @pytest.mark.parametrize("actor", ["no handle", "%3Cscript%3E", "..%2f..", "did:", "x" * 3000])
    async def test_what_is_no_actor_costs_nothing(self, start, upstream, actor):
        async with start() as proxy:
            page = await proxy.get(f"/embed/{actor}")
            assert page.status_code in (400, 404)
            assert "<script>" not in page.text.replace('<script src="/widget.js" defer></script>', "")
            assert upstream.count == 0

    async def test_where_there_is_nobody_no_work_is_spent(self, start, alice):
        async with start(ACTORS="alice.test") as proxy:
            for kind in ("", "?fragment=1"):
                page = await proxy.get(f"/embed/bob.test{kind}", accept_encoding="br, gzip, zstd")
                assert page.status_code == 403
                assert "Nothing to show here at the moment." in page.text
                assert page.headers.keys() & {"content-encoding", "etag"} == set()
        assert alice.count == 0

    async def test_what_must_not_be_stored_is_shown(self, start, alice):
        answer = alice.answer
        alice.answer = lambda request: replace(answer(request), headers={"Cache-Control": "no-store"})
        async with start() as proxy:
            page = await proxy.get("/embed/alice.test")
            assert articles(page.text) == 10
            assert "detail=no-store" in page.headers["cache-status"]

    async def test_what_a_client_says_of_itself_goes_along(self, start, alice):
        async with start() as proxy:
            await proxy.get("/embed/alice.test", atproto_accept_labelers="did:plc:labeler", if_none_match="*")
            assert alice.requests[0].headers["atproto-accept-labelers"] == "did:plc:labeler"

    async def test_names_are_text(self, start, alice):
        async with start() as proxy:
            assert "Alice &lt;b&gt;" in (await proxy.get("/embed/alice.test")).text

    async def test_its_policy_leaves_it_pictures_and_its_own_script(self, start, alice):
        async with start() as proxy:
            for kind in ("", "?fragment=1"):
                policy = (await proxy.get(f"/embed/alice.test{kind}")).headers["content-security-policy"]
                assert policy.startswith("default-src 'none'; ")
                assert "unsafe" not in policy
                assert "frame-ancestors *" in policy
                assert "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox" in policy

    async def test_isolated_pages_may_frame_it(self, start, alice):
        async with start() as proxy:
            headers = (await proxy.get("/embed/alice.test")).headers
            assert headers["cross-origin-embedder-policy"] == "credentialless"
            assert headers["cross-origin-resource-policy"] == "cross-origin"

    async def test_a_fragment_is_one_element_for_any_page(self, start, alice):
        async with start(PUBLIC_URL="https://feeds.example") as proxy:
            html = (await proxy.get("/embed/alice.test?fragment=1&limit=2&theme=dark&lang=de")).text
            assert html.startswith(
                '<bluesky-feed actor="alice.test" limit="2" theme="dark" lang="de"><template'
            )
            assert f'href="https://feeds.example/widget-{current_script().hash}.css"' in html
            assert "Auf Bluesky ansehen" in html
            assert '<section class="feed" part="feed" lang="de"' in html
            assert "<html" not in html
        async with start() as proxy:
            assert '"//proxy/widget-' in (await proxy.get("/embed/alice.test?fragment=1")).text

    async def test_where_sites_are_named_a_document_does_not_ask(self, start, alice):
        # It is sandboxed: no list of sites can name it. A fragment is a part of a site.
        for sites, asks in (("*", True), ("https://blog.example", False)):
            async with start(CORS_ORIGINS=sites) as proxy:
                assert (" still>" not in (await proxy.get("/embed/alice.test")).text) == asks
                assert " still>" not in (await proxy.get("/embed/alice.test?fragment=1")).text

    async def test_with_a_slash_behind_it(self, start, alice):
        async with start() as proxy:
            assert articles((await proxy.get("/embed/alice.test/")).text) == 10

    async def test_a_name_as_people_write_it(self, start, alice):
        async with start() as proxy:
            assert articles((await proxy.get("/embed/@alice.test")).text) == 10
            assert alice.requests[-1].params["actor"] == ["alice.test"]

    async def test_feeds_and_lists_by_their_address(self, start, alice):
        async with start() as proxy:
            for collection, method in (("feed.generator", "getFeed"), ("graph.list", "getListFeed")):
                page = await proxy.get(f"/embed/alice.test?feed=at://{DID}/app.bsky.{collection}/x")
                assert articles(page.text) == 10
                assert alice.requests[-1].path == f"/xrpc/app.bsky.feed.{method}"


class TestScript:
    async def test_the_current_one_is_short_lived(self, start):
        async with start() as proxy:
            answer = await proxy.get("/widget.js")
            assert answer.content == current_script().content
            assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
            assert answer.headers["cache-control"].startswith("public, max-age=300, ")
            assert answer.headers["access-control-allow-origin"] == "*"
            again = await proxy.get("/widget.js", if_none_match=answer.headers["etag"])
            assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize(("coding", "decode"), [("br", brotli.decompress), ("gzip", gzip.decompress)])
    async def test_it_comes_compressed(self, start, coding, decode):
        async with (
            start() as proxy,
            proxy.client.stream("GET", "/widget.js", headers={"accept-encoding": coding}) as raw,
        ):
            body = b"".join([part async for part in raw.aiter_raw()])
            assert raw.headers["content-encoding"] == coding
            assert decode(body) == current_script().content

    async def test_every_released_one_is_there_for_ever(self, start):
        released = list(RELEASED.iterdir())
        assert any(path.name.startswith(VERSION) for path in released)
        async with start() as proxy:
            for path in released:
                digest = path.stem.rpartition("-")[2]
                answer = await proxy.get(f"/widget-{digest}.js")
                assert answer.content == path.read_bytes()
                assert "immutable" in answer.headers["cache-control"]
                style = await proxy.get(f"/widget-{digest}.css")
                assert style.headers["content-type"] == "text/css; charset=utf-8"
                assert style.text in path.read_text(encoding="utf-8")

    async def test_one_that_is_yet_to_come_is_todays_and_not_kept(self, start):
        async with start() as proxy:
            for kind in ("js", "css"):
                answer = await proxy.get(f"/widget-0123456789abcdef.{kind}")
                assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
            assert (await proxy.get("/widget-0123456789abcdef.php")).status_code == 404


class TestFirstPage:
    async def test_it_names_us_as_the_world_does(self, start):
        async with start(PUBLIC_URL="https://feeds.example", ACTORS="alice.example.com,did:plc:bob") as proxy:
            page = await proxy.get("/")
            assert page.status_code == 200
            assert "https://feeds.example/widget.js" in page.text
            assert current_script().integrity in page.text
            assert 'value="alice.example.com"' in page.text
            assert "unsafe" not in page.headers["content-security-policy"]

    async def test_where_feeds_alone_are_named_it_shows_one(self, start):
        feed = f"at://{DID}/app.bsky.feed.generator/x"
        async with start(ACTORS=feed) as proxy:
            page = (await proxy.get("/")).text
            assert f'<bluesky-feed id="feed" feed="{feed}"' in page
            assert f'bluesky-feed feed="{feed}" limit' in page
            assert f"/embed/feed?feed=at%3A//{DID.replace(':', '%3A')}/app.bsky.feed.generator/x" in page

    async def test_the_lines_name_whom_the_address_names(self, start):
        async with start() as proxy:
            page = (await proxy.get("/?actor=%22%3E%3Cb%3E")).text
            assert "<b>" not in page
            assert "actor=&quot;&amp;#34;&amp;gt;&amp;lt;b&amp;gt;&quot;" in page.replace('"', "&quot;")

    async def test_a_host_that_lies_is_text(self, start):
        async with start() as proxy:
            page = await proxy.get("/", host='x"><script>alert(1)</script>')
            assert "<script>alert" not in page.text

    async def test_it_loads_nothing_from_elsewhere(self, start):
        async with start() as proxy:
            page = (await proxy.get("/")).text.replace("http://proxy/", "/").replace("{base}/", "/")
            for source in re.findall(r'(?:src|href)="([^"]+)"', page):
                assert source.startswith(("/", "data:,", "https://bsky.app"))
            for path in ("/home.js", "/home.css"):
                assert (await proxy.get(path)).status_code == 200

"""What pages and pictures do to us instead of telling of themselves: no post is lost over it."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from harness.pictures import animated, bomb, picture
from harness.stranger import INSIDE, Names
from harness.upstream import Response
from integration.web import HOSTILE, PAGE, html, jpeg, published, record_of, site


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_picture_never_costs_the_post(host, web, alice, what):
    reason = web.put_hostile("/cat.jpg", what)
    post = web.post(excerpt="An excerpt")
    outcome = await published(host, post)
    external = record_of(alice, post)["embed"]["external"]
    assert external == {"uri": post.url, "title": "Post 1", "description": "An excerpt"}
    (said,) = outcome.degraded
    assert said.startswith("the card's picture: ")
    assert reason in said
    assert web.inside.connections == 0
    # What will not get better is not tried again.
    assert web.fetched("/cat.jpg") == (6 if what == "to a loop" else 1)


@pytest.mark.parametrize("what", ["404", "a PDF", "compressed", "to the inside", "to a loop", "to a port"])
async def test_a_page_never_costs_the_post(host, web, alice, what):
    reason = web.put_hostile("/a", what)
    post = web.post(excerpt="An excerpt")
    outcome = await published(host, post)
    assert record_of(alice, post)["embed"]["external"]["title"] == "Post 1"
    (said,) = outcome.degraded
    assert said.startswith("the page: ")
    assert reason in said
    assert web.inside.connections == 0


async def test_of_a_page_of_20_mb_the_beginning_is_read(host, web, alice):
    web.at["/a"] = html(PAGE + " " * 20_000_000)
    post = web.post()
    outcome = await published(host, post)
    assert record_of(alice, post)["embed"]["external"]["description"] == "What it is about"
    assert outcome.degraded == ("the page is too large: only its beginning was read",)


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        (picture("WEBP"), "image/webp", ("the page: blog.example sends image/webp",)),
        (animated("WEBP"), "text/html", ()),
        (bomb(), "text/html", ()),
    ],
    ids=["WebP", "animation", "bomb"],
)
async def test_a_picture_in_the_place_of_a_page(host, web, alice, source, kind, said):
    web.at["/a"] = jpeg(source, kind)
    post = web.post(excerpt="An excerpt")
    outcome = await published(host, post)
    external = record_of(alice, post)["embed"]["external"]
    assert external == {"uri": post.url, "title": "Post 1", "description": "An excerpt"}
    assert outcome.degraded == said


async def test_a_name_that_leads_inside_at_the_second_look_up(world, web, alice):
    web.names = Names({"blog.example": [["127.0.0.1"], [INSIDE]]})
    web.at["/a"] = html(f'<meta property="og:image" content="http://blog.example:{web.inside.port}/x">')
    post = web.post(excerpt="An excerpt")
    outcome = await published(world.host(enricher=web.enricher()), post)
    assert web.names.asked == ["blog.example", "blog.example"]
    external = record_of(alice, post)["embed"]["external"]
    assert external == {"uri": post.url, "title": "Post 1", "description": "An excerpt"}
    (said,) = outcome.degraded
    assert said.startswith("the card's picture: ")
    assert "no public address" in said
    assert web.inside.connections == 0


@pytest.mark.parametrize("path", ["/a", "/cat.jpg"])
async def test_what_comes_byte_by_byte_is_left_at_the_deadline(host, web, alice, path):
    web.at[path] = replace(web.at[path], drip_s=1.0)
    host.publish = functools.partial(host.publish, enrich_s=1.5)
    post = web.post(excerpt="An excerpt")
    outcome = await published(host, post)
    external = record_of(alice, post)["embed"]["external"]
    assert external == {"uri": post.url, "title": "Post 1", "description": "An excerpt"}
    assert "in time" in outcome.degraded[-1] or "no time left" in outcome.degraded[-1]


async def test_a_server_in_trouble_is_asked_twice(web):
    web.at["/a"] = Response(status=503, body=b"")
    enrichment = await web.enricher().enrich(web.post(), site(), web.clock.steady() + 20)
    assert enrichment.degraded == ("the page: blog.example answered 503",)
    assert web.fetched("/a") == 2


async def test_one_that_recovers_is_forgiven(web):
    answers = [Response(status=503, body=b""), Response(close=True), html(PAGE)]
    web.server.answer = lambda call: answers.pop(0) if call.path == "/a" else web.at[call.path]
    del answers[0]
    enrichment = await web.enricher().enrich(web.post(), site(), web.clock.steady() + 20)
    assert enrichment.description == "What it is about"
    assert enrichment.degraded == ()

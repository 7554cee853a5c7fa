"""feedproxy behind Debian's nginx and Caddy, as deploy/ has them."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from real.edges import caddy, echo, nginx

from harness.workers import nursery_in
from integration.deployment import AccountOfTest, Deployment, document

FEED = "/xrpc/app.bsky.actor.getProfile?actor=alice.example.com"
LONG_POLL_S = 30
NOBODYS = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def api():
    with echo() as port:
        yield port


@pytest.fixture(scope="module")
def deployment(api):
    with (
        tempfile.TemporaryDirectory(prefix="fp-") as directory,
        nursery_in(Path(directory)) as nursery,
        Deployment(
            Path(directory),
            nursery,
            [AccountOfTest(name="main", identifier="did:plc:nobody", password="x" * 20)],
            UPSTREAM=f"http://127.0.0.1:{api}",
            PLC_URL=NOBODYS,
        ) as deployment,
    ):
        yield deployment


@pytest.fixture(scope="module")
def edges(deployment, api):
    """Both servers."""
    port = int(deployment.serve.base_url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:

        def directory():
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fp-")))

        yield {
            "nginx": stack.enter_context(nginx(directory(), port, api)),
            "caddy": stack.enter_context(caddy(directory(), port, api)),
        }


@pytest.fixture(params=["nginx", "caddy"])
def edge(request, edges):
    return edges[request.param]


def bearer(deployment):
    return {"authorization": f"Bearer {deployment.tokens['blog']}"}


def later(deployment, number):
    """A job that waits for tomorrow."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    return deployment.post(number, published_at=tomorrow)


@pytest.mark.parametrize("ipv6", [False, True])
def test_feeds_come_over_both_protocols_and_nothing_else_goes_out(edge, ipv6):
    with edge.client("feeds.example", ipv6=ipv6) as client:
        feed = client.get(FEED)
        assert feed.status_code == 200
        assert feed.headers["cache-status"].startswith("feedproxy; ")
        assert client.get("/health").json().keys() == {"status"}, "a stranger learns no more"
        assert client.get("/metrics").status_code == 404


def test_one_host_name_is_shared_with_a_cms(edge):
    with edge.client("blog.example") as client:
        assert client.get(FEED).headers["cache-status"].startswith("feedproxy; ")
        assert client.get("/widget.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/embed/alice.example.com").headers["content-type"].startswith("text/html")
        assert client.post("/syndicate", json={}).json()["code"] == "unauthorized"
        assert client.get("/syndicate/job_x").status_code == 401
        for path in ("/", "/wp-json/x?y=1", "/syndicated", "/xrpc", "/livez"):
            assert client.get(path).json()["path"] == path, "the CMS's"
        assert client.get("/").json()["headers"]["Host"] == "blog.example"


def test_what_clients_say_of_themselves_is_not_passed_on(edge):
    with edge.client("blog.example", source="127.0.0.2") as client:
        said = {"x-forwarded-for": "203.0.113.7", "forwarded": "for=203.0.113.7"}
        assert client.get("/", headers=said).json()["headers"]["X-Forwarded-For"] == "127.0.0.2"


def test_clients_are_told_apart_by_their_addresses(edge, edges):
    """Wrong tokens are limited by client: neither all of them at once, nor as many as one pretends to be."""
    number = 2 + 2 * list(edges.values()).index(edge)
    guesser, other = f"127.0.1.{number}", f"127.0.1.{number + 1}"

    def guess(client, pretended):
        headers = {
            "authorization": "Bearer wrong",
            "x-forwarded-for": pretended,
            "forwarded": f"for={pretended}",
        }
        return client.get("/syndicate", headers=headers).status_code

    with edge.client("feeds.example", source=guesser) as client:
        answers = [guess(client, f"203.0.113.{turn}") for turn in range(12)]
    assert answers[:10] == [401] * 10
    assert answers[-1] == 429
    with edge.client("feeds.example", source=other) as client:
        assert guess(client, "203.0.113.1") == 401


def test_events_are_not_held_back(edge, edges, deployment):
    job = later(deployment, f"event-{list(edges).index('nginx')}-{id(edge)}")
    path = f"{job['links']['self']}/events"
    with (
        edge.client("feeds.example") as client,
        client.stream("GET", path, headers=bearer(deployment)) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()

        def status():
            return next(json.loads(line[5:])["status"] for line in lines if line.startswith("data:"))

        assert status() == "pending"
        deployment.client.delete(job["links"]["self"], headers=bearer(deployment))
        assert status() == "canceled"


def test_a_long_poll_of_30_s_is_answered_by_us(edges, deployment):
    job = later(deployment, "long-poll")

    def poll(edge):
        with edge.client("feeds.example", timeout_s=60) as client:
            began_at = time.monotonic()
            path = f"{job['links']['self']}?wait={LONG_POLL_S}"
            answer = client.get(path, headers=bearer(deployment))
            return answer.status_code, answer.json()["status"], time.monotonic() - began_at >= LONG_POLL_S - 1

    with ThreadPoolExecutor() as clients:
        assert list(clients.map(poll, edges.values())) == [(200, "pending", True)] * len(edges)


def test_a_batch_of_posts_fits_through(edge, deployment):
    posts = [document(f"{id(edge)}-{number}", text="x" * 10_000) for number in range(100)]
    with edge.client("feeds.example") as client:
        answer = client.post("/syndicate/batch", json=posts, headers=bearer(deployment))
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"]) == 100

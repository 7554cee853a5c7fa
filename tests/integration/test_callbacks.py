"""The CMS is told of each end of a job, signed, again until it has heard, and nobody else pays for it."""

from __future__ import annotations

import contextlib
import uuid

import pytest

from harness.newsroom import Newsroom, token_of
from harness.receiver import Receiver
from harness.redis_servers import redis_server
from harness.upstream import Response, xrpc_error
from harness.waiting import until
from proxy.syndication.chain import NOTIFY_DELAYS_S
from proxy.syndication.signing import derived_secret

SECRET = derived_secret(token_of("blog"), "blog")
ALLOWED = {"ENRICH_ALLOW": "127.0.0.1/32"}


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


@pytest.fixture
async def room(server, tmp_path):
    async with Newsroom(server.url, f"room-{uuid.uuid4().hex[:8]}", tmp_path).open() as opened:
        yield opened
        assert opened.stored.faults() == []


@pytest.fixture
async def cms():
    async with Receiver(SECRET) as receiver:
        yield receiver


@contextlib.asynccontextmanager
async def working_host(room, **changes):
    async with room.host(**(ALLOWED | changes)) as host, host.working():
        yield host


async def callback_of(host, job, **wanted):
    """The callback of the job, once it is as `wanted`."""

    async def as_wanted():
        shown = (await host.ask(job["links"]["self"])).json()["callback"]
        return shown if wanted.items() <= shown.items() else None

    return await until(as_wanted)


async def test_a_job_that_ends_is_told_of_as_get_shows_it(room, cms):
    async with working_host(room) as host:
        job = (await host.send(host.post(callback_url=cms.hook))).json()
        assert job["callback"]["status"] == "waiting"
        told = await callback_of(host, job, status="delivered")
        shown = (await host.ask(job["links"]["self"])).json()
    ((message_id, document),) = cms.heard
    assert document | {"callback": None} == shown | {"callback": None}
    assert document["status"] == "completed"
    assert (told["id"], told["attempts"], told["error"]) == (message_id, 1, None)
    assert told["delivered_at"]
    assert cms.requests[0].headers["content-type"] == "application/json"


async def test_a_job_without_a_callback_url_has_none(room):
    async with working_host(room) as host:
        job = (await host.send(host.post())).json()
        await host.until_shown(job, status="completed")
        assert (await host.ask(job["links"]["self"])).json()["callback"] is None


async def test_who_does_not_listen_is_told_again_under_the_same_id(room, cms):
    answers = iter([Response(500), Response(302, headers={"location": "http://127.0.0.2/"}), Response(200)])
    cms.answer = lambda _call: next(answers)
    async with working_host(room) as host:
        job = (await host.send(host.post(callback_url=cms.hook))).json()
        failing = await callback_of(host, job, status="retrying", attempts=1)
        assert (failing["error"], bool(failing["next_attempt_at"])) == ("answered 500", True)
        assert (await host.shown(job))["status"] == "completed"
        room.stored.let_time_pass(5)
        failing = await callback_of(host, job, status="retrying", attempts=2)
        assert failing["error"] == "answered 302"
        room.stored.let_time_pass(30)
        await callback_of(host, job, status="delivered", attempts=3)
    assert len({message_id for message_id, _ in cms.heard}) == 1


async def test_after_the_last_attempt_it_fails_and_not_the_job_and_a_retry_tells_again(room, cms):
    cms.answer = lambda _call: Response(500)
    async with working_host(room) as host:
        job = (await host.send(host.post(callback_url=cms.hook))).json()
        for attempts, delay_s in enumerate(NOTIFY_DELAYS_S, start=1):
            await callback_of(host, job, status="retrying", attempts=attempts)
            room.stored.let_time_pass(delay_s)
        failed = await callback_of(host, job, status="failed")
        assert (failed["attempts"], failed["error"]) == (11, "answered 500")
        assert (await host.shown(job))["status"] == "completed"
        cms.answer = lambda _call: Response(200)
        again = await host.ask(job["links"]["retry"], method="POST")
        assert again.status_code == 202
        await callback_of(host, job, status="delivered", attempts=12)
        # Counted once the queue knows it, which whoever asks may see before.
        wanted = {"delivered": 1, "retrying": 10, "failed": 1, "disabled": 0}
        await until(
            lambda: {of: n for (of,), n in host.counted().numbers["feedproxy_callbacks"].items()} == wanted
        )
        assert (await host.ask(job["links"]["retry"], method="POST")).status_code == 409
    assert len({message_id for message_id, _ in cms.heard}) == 1


async def test_an_address_that_is_gone_is_left_alone_until_a_retry(room, cms):
    cms.answer = lambda _call: Response(410)
    async with working_host(room) as host:
        first = (await host.send(host.post(1, callback_url=cms.hook))).json()
        told = await callback_of(host, first, status="disabled")
        assert "410" in told["error"]
        second = (await host.send(host.post(2, callback_url=cms.hook))).json()
        await callback_of(host, second, status="disabled", attempts=0)
        elsewhere = (await host.send(host.post(3, callback_url=f"{cms.url}/another"))).json()
        await callback_of(host, elsewhere, status="disabled", attempts=1)
        cms.answer = lambda _call: Response(200)
        await host.ask(second["links"]["retry"], method="POST")
        await callback_of(host, second, status="delivered", attempts=1)
        third = (await host.send(host.post(4, callback_url=cms.hook))).json()
        await callback_of(host, third, status="delivered")
        assert (await callback_of(host, first))["status"] == "disabled"


async def test_each_end_of_a_job_is_told_under_an_id_of_its_own(room, cms):
    async with working_host(room, extra='unpublish = "delete"') as host:
        post = host.post(callback_url=cms.hook)
        job = (await host.send(post)).json()
        await callback_of(host, job, status="delivered")
        await host.send({**post, "status": "draft"})
        await until(lambda: len(cms.heard) == 2)
        await callback_of(host, job, status="delivered")
    (first, _), (second, _) = cms.heard
    assert (first, second) == (f"msg_{job['id'][4:]}_1", f"msg_{job['id'][4:]}_2")
    assert room.alices.posts(room.alice) == []


async def test_what_a_retry_overtakes_is_not_told(room, cms):
    cms.answer = lambda _call: Response(500)
    room.alices.fail("putRecord", xrpc_error(400, "InvalidRequest", "no"))
    async with working_host(room) as host:
        job = (await host.send(host.post(callback_url=cms.hook))).json()
        await callback_of(host, job, status="retrying")
        cms.answer = lambda _call: Response(200)
        await host.ask(job["links"]["retry"], method="POST")
        told = await callback_of(host, job, status="delivered")
    assert told["id"].endswith("_2")
    assert [document["status"] for _, document in cms.heard] == ["failed", "completed"]


async def test_nothing_of_the_inside_is_called(room):
    async with Receiver(SECRET) as inside:
        async with working_host(room, ENRICH_ALLOW="192.0.2.0/24") as host:
            job = (await host.send(host.post(callback_url=inside.hook))).json()
            told = await callback_of(host, job, status="retrying")
            assert "public address" in told["error"]
        assert inside.connections == 0


async def test_a_host_of_the_site_may_be_inside(room, cms):
    hosts = f'hosts = ["blog.example", "127.0.0.1:{cms.port}"]'
    async with working_host(room, ENRICH_ALLOW="192.0.2.0/24", extra=hosts) as host:
        job = (await host.send(host.post(callback_url=cms.hook))).json()
        await callback_of(host, job, status="delivered")

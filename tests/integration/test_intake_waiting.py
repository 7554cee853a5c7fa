"""Clients that wait for a job: long polls and event streams, their limits and their end."""

from __future__ import annotations

import asyncio
import json

import pytest

from harness.intake import NEWS, Listener, running_office
from harness.waiting import until
from proxy.errors import StoreUnavailable
from proxy.syndication.job import DeliveryState
from proxy.syndication.waiting import WaitPolicy

# So quick to look again that nothing depends on news, or so slow that everything does.
QUICK = WaitPolicy(max_per_site=2, look_s=0.001, gap_s=0, heartbeat_s=0.002)
NEWS_ALONE = WaitPolicy(max_per_site=2, look_s=60, heartbeat_s=60)


@pytest.fixture(params=[QUICK, NEWS_ALONE], ids=["looks", "news"])
async def office(clock, request):
    async with running_office(clock, waiting=request.param) as office:
        yield office


@pytest.fixture
async def quick(clock):
    async with running_office(clock, waiting=QUICK) as office:
        yield office


async def sent(office, **changes):
    return (await office.send(office.post(**changes))).json()


def waiting(office):
    """How many clients wait, as the limit counts them."""
    return lambda: sum(office.waiters._waiting.values())


async def test_a_long_poll_answers_once_a_status_has_changed(office):
    job = await sent(office)
    looks, read = [], office.desk.read

    async def counted(*args, **options):
        looks.append(await read(*args, **options))
        return looks[-1]

    office.desk.read = counted
    poll = asyncio.create_task(office.ask(f"/syndicate/{job['id']}?wait=60"))
    await until(waiting(office))
    # An attempt under way changes no status.
    await office.desk.change(job["id"], DeliveryState.ACTIVE, attempts=1)
    await until(lambda: looks[-1].deliveries[0].attempts == 1)
    await office.desk.change(job["id"], DeliveryState.DELAYED, failures=1, waiting_for="retry")
    assert (await poll).json()["status"] == "retrying"
    assert waiting(office)() == 0


async def test_a_long_poll_for_a_job_that_is_over_answers_at_once(office):
    job = await sent(office)
    await office.desk.change(job["id"], DeliveryState.DONE)
    assert (await office.ask(f"/syndicate/{job['id']}?wait=60")).json()["status"] == "completed"


async def test_a_long_poll_answers_with_what_there_is_when_its_time_is_up(office):
    job = await sent(office)
    answer = await office.ask(f"/syndicate/{job['id']}?wait=1")
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")


@pytest.mark.parametrize("wait", ["61", "-1", "x", "1.5", "1&wait=2"])
async def test_a_wait_that_is_none(office, wait):
    job = await sent(office)
    answer = await office.ask(f"/syndicate/{job['id']}?wait={wait}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


async def test_a_stream_tells_of_each_change_until_the_job_is_over(office):
    job = await sent(office)
    async with Listener(office, f"/syndicate/{job['id']}/events") as listener:
        await until(listener.events)
        assert (listener.status, listener.headers["content-type"]) == (
            200,
            "text/event-stream; charset=utf-8",
        )
        assert listener.headers["cache-control"] == "no-store"
        await until(waiting(office))
        await office.desk.change(job["id"], DeliveryState.ACTIVE, attempts=1)
        await until(lambda: len(listener.events()) == 2)
        await office.desk.change(job["id"], DeliveryState.DONE, uri="at://x", cid="bafy")
        await until(lambda: listener.ended)
        told = listener.events()
    assert [event["accounts"][0]["attempts"] for event in told] == [0, 1, 1]
    assert [event["status"] for event in told] == ["pending", "pending", "completed"]
    last = told[-1].pop("event_id")
    assert told[-1] == (await office.ask(f"/syndicate/{job['id']}")).json()
    # Browsers reconnect for ever, until they are told that there is nothing more.
    again = await office.ask(f"/syndicate/{job['id']}/events", last_event_id=last)
    assert (again.status_code, again.content) == (204, b"")
    async with Listener(office, f"/syndicate/{job['id']}/events", last_event_id="older") as listener:
        await until(lambda: listener.ended)
        assert [event["status"] for event in listener.events()] == ["completed"]
    assert waiting(office)() == 0


async def test_a_quiet_stream_has_a_heartbeat(quick):
    job = await sent(quick)
    async with Listener(quick, f"/syndicate/{job['id']}/events") as listener:
        await until(lambda: listener.text.count(": still here\n\n") >= 2)
        assert len(listener.events()) == 1


async def test_whatever_a_tenant_writes_stays_within_its_event(quick):
    nasty = "a\r\n\r\nevent: evil\u2028\u2029\x85data: {}"
    job = await sent(quick, title=nasty, tags=["\n\nevent: evil"], group="x\u2028evil: 1")
    async with Listener(quick, f"/syndicate/{job['id']}/events") as listener:
        await until(listener.events)
        fields = [line.partition(":")[0] for line in listener.text.splitlines() if line]
    assert set(fields) <= {"retry", "event", "id", "data", ""}
    assert listener.text.count("event: status\n") == listener.text.count("\ndata: ")


async def test_a_shutdown_ends_polls_and_streams_at_once(office):
    job = await sent(office)
    poll = asyncio.create_task(office.ask(f"/syndicate/{job['id']}?wait=60"))
    async with Listener(office, f"/syndicate/{job['id']}/events") as listener:
        await until(listener.events)
        await until(lambda: waiting(office)() == 2)
        office.draining.set()
        assert (await poll).json()["status"] == "pending"
        await until(lambda: listener.ended)
    # What comes now does not wait either.
    assert (await office.ask(f"/syndicate/{job['id']}?wait=60")).status_code == 200


async def test_a_client_that_goes_away_gives_its_place_back(office):
    job = await sent(office)
    async with Listener(office, f"/syndicate/{job['id']}/events") as listener:
        await until(waiting(office))
        listener.hang_up()
        await until(lambda: not waiting(office)())
        assert not listener.ended


async def test_no_more_than_so_many_wait_for_one_site(office):
    job = await sent(office)
    path = f"/syndicate/{job['id']}/events"
    news = await office.send(office.post(url="https://news.example/"), token=NEWS)
    async with Listener(office, path), Listener(office, path):
        await until(lambda: waiting(office)() == 2)
        for answer in (await office.ask(path), await office.ask(f"/syndicate/{job['id']}?wait=60")):
            assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
            assert answer.headers["retry-after"] == "5"
        assert (await office.ask(f"/syndicate/{job['id']}")).status_code == 200
        async with Listener(office, f"/syndicate/{news.json()['id']}/events", token=NEWS) as other:
            await until(other.events)
    assert waiting(office)() == 0


async def test_a_stream_outlives_an_outage_of_the_store(quick):
    job = await sent(quick)
    async with Listener(quick, f"/syndicate/{job['id']}/events") as listener:
        await until(listener.events)
        quick.desk.fault = StoreUnavailable("away")
        beats = listener.text.count(": still here")
        await until(lambda: listener.text.count(": still here") > beats + 1)
        quick.desk.fault = None
        await quick.desk.change(job["id"], DeliveryState.DEAD)
        await until(lambda: listener.ended)
        assert [event["status"] for event in listener.events()] == ["pending", "failed"]


async def test_a_stream_ends_when_its_job_is_swept(quick):
    job = await sent(quick)
    async with Listener(quick, f"/syndicate/{job['id']}/events") as listener:
        await until(listener.events)
        del quick.desk.views[job["id"]]
        await until(lambda: listener.ended)


async def test_a_stream_ends_in_time_and_the_client_comes_back(clock):
    policy = WaitPolicy(look_s=0.001, stream_s=0.01)
    async with running_office(clock, waiting=policy) as office:
        job = await sent(office)
        async with Listener(office, f"/syndicate/{job['id']}/events") as listener:
            await until(lambda: listener.ended)
            assert listener.text.startswith("retry: 3000\n\n")


async def test_events_are_the_same_json_as_the_job(quick):
    job = await sent(quick)
    async with Listener(quick, f"/syndicate/{job['id']}/events") as listener:
        await until(listener.events)
        event = listener.events()[0]
    event.pop("event_id")
    assert event == json.loads((await quick.ask(f"/syndicate/{job['id']}")).text)


async def test_news_that_never_stop_do_not_make_a_stream_spin(clock):
    async with running_office(clock, waiting=WaitPolicy(gap_s=0.02)) as office:
        job = await sent(office)
        looks, told = 0, 0
        read = office.desk.read

        async def counted(*args, **options):
            nonlocal looks
            looks += 1
            return await read(*args, **options)

        async def always(job, timeout_s):
            nonlocal told
            told += 1

        office.desk.read, office.desk.wait_for_news = counted, always
        assert (await office.ask(f"/syndicate/{job['id']}?wait=1")).json()["status"] == "pending"
        assert looks <= 60
        assert told <= looks

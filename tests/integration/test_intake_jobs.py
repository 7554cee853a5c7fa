"""Jobs as their site sees them: shown, listed, retried, canceled; and hidden from all others."""

from __future__ import annotations

import pytest

from harness.intake import NEWS, assert_problem, rfc3339, running_office
from proxy.errors import StoreUnavailable
from proxy.syndication.job import DeliveryState


@pytest.fixture
async def office(clock):
    async with running_office(clock) as office:
        yield office


async def test_a_site_sees_its_own_jobs_alone(office):
    job = (await office.send()).json()["links"]["self"]
    for method, path in (
        ("GET", job),
        ("GET", f"{job}?wait=60"),
        ("GET", f"{job}/events"),
        ("POST", f"{job}/retry"),
        ("DELETE", job),
    ):
        assert_problem(await office.ask(path, method=method, token=NEWS), 404, "not_found")
    assert (await office.ask("/syndicate", token=NEWS)).json() == {"jobs": [], "errors": [], "cursor": None}
    assert (await office.ask(job)).json()["status"] == "pending"


@pytest.mark.parametrize("job", ["x" * 65, "a%00b", "a%0a", "a%2fb", "%F0%9F%98%80"])
async def test_what_cannot_be_a_job_is_not_asked_of_the_store(office, job):
    office.desk.fault = StoreUnavailable("asked")
    assert_problem(await office.ask(f"/syndicate/{job}"), 404, "not_found")


@pytest.mark.parametrize("job", ["job_none", "x" * 65, "a%00b", "a%0a", "..%2f", "%F0%9F%98%80"])
async def test_a_job_that_does_not_exist(office, job):
    assert_problem(await office.ask(f"/syndicate/{job}"), 404, "not_found")
    assert_problem(await office.ask(f"/syndicate/{job}/retry", method="POST"), 404, "not_found")


async def test_the_list_goes_by_status_group_and_page(office):
    for number in range(5):
        await office.send(office.post(id=str(number), group="odd" if number % 2 else "even"))
    await office.desk.change(next(iter(office.desk.views)), DeliveryState.DEAD)
    everything = (await office.ask("/syndicate")).json()
    assert [job["post"] for job in everything["jobs"]] == ["4", "3", "2", "1", "0"]
    assert everything["cursor"] is None
    odd = (await office.ask("/syndicate?group=odd&status=pending")).json()
    assert [job["post"] for job in odd["jobs"]] == ["3", "1"]
    assert [job["post"] for job in (await office.ask("/syndicate?status=failed")).json()["jobs"]] == ["0"]
    seen, cursor = [], ""
    while True:
        page = (await office.ask(f"/syndicate?limit=2&cursor={cursor}")).json()
        seen += [job["post"] for job in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert seen == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize(
    "query",
    ["status=lost", "status=skipped", "limit=0", "limit=101", "limit=x", "limit=1&limit=2", "cursor=a%20b"],
)
async def test_a_parameter_of_the_list_that_is_wrong(office, query):
    assert_problem(await office.ask(f"/syndicate?{query}"), 422, "invalid_parameter")


async def test_what_has_failed_is_tried_again_and_nothing_else(office):
    job = (await office.send()).json()
    path = job["links"]["retry"]
    assert_problem(await office.ask(path, method="POST"), 409, "nothing_to_retry")
    await office.desk.change(job["id"], DeliveryState.DEAD, error="boom", failures=4)
    failed = (await office.ask(job["links"]["self"])).json()
    assert (failed["status"], failed["accounts"][0]["error"]) == ("failed", "boom")
    answer = await office.ask(path, method="POST")
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.headers["location"] == job["links"]["self"]


async def test_what_has_not_been_sent_is_canceled(office):
    job = (await office.send()).json()
    for _ in range(2):
        answer = await office.ask(job["links"]["self"], method="DELETE")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    done = (await office.send(office.post(id="2"))).json()
    await office.desk.change(done["id"], DeliveryState.DONE)
    assert_problem(await office.ask(done["links"]["self"], method="DELETE"), 409, "nothing_to_cancel")


async def test_what_may_have_been_sent_is_withdrawn_all_the_same(office):
    job = (await office.send()).json()
    await office.desk.change(job["id"], DeliveryState.ACTIVE, failures=1, after="cancel")
    answer = await office.ask(job["links"]["self"], method="DELETE")
    assert (answer.status_code, answer.json()["status"]) == (200, "retrying")


async def test_a_delivery_is_shown_with_what_it_waits_for(office):
    job = (await office.send()).json()
    due_at = office.clock.wall() + 60
    await office.desk.change(
        job["id"],
        DeliveryState.DELAYED,
        failures=1,
        attempts=1,
        waiting_for="retry",
        due_at_ms=int(due_at * 1000),
        cid="bafyintended",
    )
    retrying = (await office.ask(job["links"]["self"])).json()
    shown = retrying["accounts"][0]
    assert (retrying["status"], shown["status"], shown["attempts"]) == ("retrying", "retrying", 1)
    assert (shown["waiting_for"], shown["next_attempt_at"]) == ("retry", rfc3339(due_at))
    assert shown["cid"] is None
    view = await office.desk.change(job["id"], DeliveryState.READY)
    view.gates.update(main=("breaker", int(due_at * 1000)), side=("credentials", -1))
    main, side = (await office.ask(job["links"]["self"])).json()["accounts"]
    assert (main["waiting_for"], main["next_attempt_at"]) == ("breaker", rfc3339(due_at))
    assert (side["waiting_for"], side["next_attempt_at"]) == ("credentials", None)

"""The table of transitions, what is shown, and how stored jobs are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.syndication.job import (
    FORMAT,
    LIVE,
    TERMINAL,
    TRANSITIONS,
    Action,
    DeliveryState,
    Event,
    Failure,
    Status,
    delivery_from_fields,
    job_from_fields,
    job_status,
    retry_delay_s,
    shown_status,
    transitions_diagram,
)

DELIVERY = {
    b"format": b"1", b"job": b"job_1", b"account": b"main", b"site": b"blog", b"state": b"delayed",
    b"failures": b"2", b"due_at_ms": b"1795000000000", b"intent": b"\xff\x00",
    b"error": b"HTTP 503",
    b"history": b'[[1795000000000,"HTTP 503"]]', b"degraded": b"{}",
}  # fmt: skip
JOB = {b"format": b"1", b"id": b"job_1", b"site": b"blog", b"post": b"123", b"accounts": b"main,other"}


def test_every_state_can_be_reached_and_every_live_one_left():
    reached = {DeliveryState.READY, DeliveryState.DELAYED} | set(TRANSITIONS.values())
    assert reached == set(DeliveryState)
    assert {event for _, event in TRANSITIONS} == set(Event)
    for state in LIVE:
        assert any(
            TRANSITIONS[start, event] in TERMINAL for start, event in TRANSITIONS if start is state
        ) or (any(TRANSITIONS[start, event] in LIVE for start, event in TRANSITIONS if start is state))


def test_what_is_over_begins_again_only_when_asked_to():
    revivals = {
        (state, event)
        for (state, event), after in TRANSITIONS.items()
        if state in TERMINAL and after not in TERMINAL
    }
    assert revivals == {
        (DeliveryState.DEAD, Event.REQUEUE),
        (DeliveryState.CANCELED, Event.REQUEUE),
        (DeliveryState.DONE, Event.UNPUBLISH),
    }
    assert not any(
        state is DeliveryState.DONE for state, event in TRANSITIONS if event is not Event.UNPUBLISH
    )


def test_the_diagram_shows_each_transition():
    lines = transitions_diagram().splitlines()
    for (state, event), after in TRANSITIONS.items():
        assert f"    {state} --> {after}: {event}" in lines


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (["pending"], "pending"),
        (["completed", "pending"], "pending"),
        (["failed", "retrying", "pending"], "retrying"),
        (["completed", "completed"], "completed"),
        (["completed", "failed"], "partial"),
        (["completed", "canceled"], "partial"),
        (["failed", "canceled"], "failed"),
        (["failed"], "failed"),
        (["canceled", "canceled"], "canceled"),
    ],
)
def test_the_status_of_a_job(shown, expected):
    assert job_status(Status(one) for one in shown) == expected


@given(st.sampled_from(DeliveryState), st.integers(0, 5))
def test_only_the_living_are_pending_or_retrying(state, failures):
    shown = shown_status(state, failures)
    assert (shown in (Status.PENDING, Status.RETRYING)) == (state in LIVE)
    assert (shown is Status.RETRYING) == (state in LIVE and failures > 0)


def test_retries_after_each_delay_and_then_none():
    delays = (60, 120, 300)
    assert [retry_delay_s(failures, delays) for failures in range(1, 5)] == [60, 120, 300, None]
    assert retry_delay_s(1, ()) is None


def test_a_delivery_is_read_as_it_was_stored():
    delivery = delivery_from_fields(DELIVERY)
    assert delivery.id == "job_1:main"
    assert delivery.state is DeliveryState.DELAYED
    assert delivery.action is Action.POST
    assert (delivery.failures, delivery.due_at_ms) == (2, 1_795_000_000_000)
    assert delivery.intent == b"\xff\x00"
    assert delivery.history == (Failure(at_ms=1_795_000_000_000, reason="HTTP 503"),)
    assert delivery.degraded == ()
    assert delivery.shown is Status.RETRYING


def test_a_uri_that_follows_from_the_key_is_not_stored():
    done = {**DELIVERY, b"state": b"done", b"did": b"did:plc:x", b"rkey": b"3k"}
    assert delivery_from_fields(done).uri == "at://did:plc:x/app.bsky.feed.post/3k"
    assert delivery_from_fields({**done, b"uri": b"at://found"}).uri == "at://found"
    assert delivery_from_fields({**done, b"state": b"active"}).uri == ""


def test_a_job_is_read_as_it_was_stored():
    job = job_from_fields({**JOB, b"revision": b"7", b"created_at_ms": b"5"})
    assert (job.id, job.accounts, job.revision, job.created_at_ms) == ("job_1", ("main", "other"), 7, 5)
    assert job_from_fields(JOB).revision is None


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT])
def test_this_format_and_the_one_before_are_read(number):
    assert delivery_from_fields({**DELIVERY, b"format": b"%d" % number}) is not None
    assert job_from_fields({**JOB, b"format": b"%d" % number}) is not None


@pytest.mark.parametrize(
    "change",
    [{b"format": b"%d" % (FORMAT + 1)},
     {b"format": b"x"}, {b"state": b"?"}, {b"fence": b"x"}, {b"site": b"\xff"},
     {b"history": b"["}, {b"history": b"[1]"}],
)  # fmt: skip
def test_what_cannot_be_read_is_none(change):
    assert delivery_from_fields({**DELIVERY, **change}) is None


def test_damaged_jobs_are_none():
    assert job_from_fields({}) is None
    assert job_from_fields({**JOB, b"revision": b"x"}) is None
    assert delivery_from_fields({}) is None


def test_the_scripts_count_as_this_module_does():
    """Constants that stand in Lua and in Python are the same."""
    from proxy.syndication import job

    library = (Path(job.__file__).parent.parent / "store" / "lua" / "queue.lua").read_text(encoding="utf-8")
    stated = re.search(r"MAX_HISTORY, POISON_DELIVERIES = (\d+), (\d+)", library)
    assert (int(stated[1]), int(stated[2])) == (job.MAX_HISTORY, job.POISON_DELIVERIES)

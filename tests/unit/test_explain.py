"""Why something waits, told for each thing that it can wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.syndication.explain import why_waiting
from proxy.syndication.job import Delivery, DeliveryState
from proxy.syndication.overview import AccountOverview, Overview

NOW_MS = 1_800_000_000_000
LATER_MS = NOW_MS + 60_000
READY = Delivery(job="job_1", account="main", site="blog", state=DeliveryState.READY)
OPEN = AccountOverview(
    account="main",
    paused=False,
    gate_reason="",
    gate_until_ms=0,
    pace_until_ms=0,
    failures=0,
    broken=False,
    active="",
    worker="",
    workers=1,
    waiting=3,
    place=0,
)
QUEUE = Overview(now_ms=NOW_MS, paused=False, paused_at_ms=0, emptied_at_ms=0, workers=2, accounts=())


def told(delivery=READY, account=OPEN, queue=QUEUE):
    causes = why_waiting(delivery, replace(queue, accounts=(account,)))
    return [(cause.code, cause.until_ms) for cause in causes]


@pytest.mark.parametrize("state", [DeliveryState.DONE, DeliveryState.DEAD, DeliveryState.CANCELED])
def test_what_is_over_waits_for_nothing(state):
    assert told(replace(READY, state=state), replace(OPEN, paused=True)) == []


def test_what_is_being_sent_names_its_worker():
    (cause,) = why_waiting(
        replace(READY, state=DeliveryState.ACTIVE, worker="host-1"), replace(QUEUE, accounts=(OPEN,))
    )
    assert (cause.code, cause.sentence) == ("sending", "host-1 is working on it")


@pytest.mark.parametrize("reason", ["retry", "schedule", "quota", "something newer"])
def test_what_is_put_off_says_until_when(reason):
    delayed = replace(READY, state=DeliveryState.DELAYED, waiting_for=reason, due_at_ms=LATER_MS)
    assert told(delayed, replace(OPEN, place=-1)) == [(reason, LATER_MS)]


@pytest.mark.parametrize(
    ("account", "cause"),
    [
        ({"gate_reason": "breaker", "gate_until_ms": LATER_MS}, ("breaker", LATER_MS)),
        ({"gate_reason": "rate_limited", "gate_until_ms": LATER_MS}, ("rate_limited", LATER_MS)),
        ({"gate_reason": "credentials", "gate_until_ms": -1, "workers": 0}, ("credentials", -1)),
        ({"pace_until_ms": LATER_MS}, ("rate_limited", LATER_MS)),
        ({"paused": True}, ("account_paused", -1)),
        ({"workers": 0}, ("unknown_account", 0)),
        ({}, ("turn", 0)),
        ({"pace_until_ms": NOW_MS - 1}, ("turn", 0)),
    ],
)
def test_what_its_account_waits_for(account, cause):
    assert told(account=replace(OPEN, **account)) == [cause]


def test_a_limit_is_told_in_words_and_not_by_its_code_again():
    account = replace(OPEN, gate_reason="rate_limited", gate_until_ms=LATER_MS)
    (cause,) = why_waiting(READY, replace(QUEUE, accounts=(account,)))
    assert cause.sentence == (
        "main has reached a limit of its server, or one of our own, as the pause between logins"
    )


def test_all_causes_are_told_with_the_place_behind_others():
    account = replace(OPEN, place=2, paused=True, gate_reason="breaker", gate_until_ms=LATER_MS)
    queue = replace(QUEUE, paused=True, workers=0)
    assert [code for code, _ in told(account=account, queue=queue)] == [
        "turn",
        "breaker",
        "account_paused",
        "paused",
        "no_worker",
    ]
    (turn, *_) = why_waiting(READY, replace(QUEUE, accounts=(replace(account, active="job_0:main"),)))
    assert turn.sentence == "it is number 3 of 3 in the queue of main, behind one that is being sent"

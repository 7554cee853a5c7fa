"""How many calls at a time: halved by a burst within a second, one more each good round, and never idle."""

from __future__ import annotations

import heapq
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resilience.adaptive import AdaptiveLimit, AdaptivePolicy

POLICY = AdaptivePolicy(ceiling=8)
FULL = AdaptiveLimit(level=8.0)


def refused(state, *, began_at, now):
    return state.record(refused=True, began_at=began_at, now=now, policy=POLICY)


def went_well(state, *, began_at, now):
    return state.record(refused=False, began_at=began_at, now=now, policy=POLICY)


def test_a_burst_halves_it_once_and_at_once():
    state = FULL
    for number in range(8):
        state = refused(state, began_at=0.0, now=0.1 + number / 100)
    assert (state.limit, state.halved_at) == (4, 0.11)


def test_each_further_burst_halves_it_down_to_one():
    state, limits = FULL, []
    for second in range(5):
        for number in (1, 2):
            state = refused(state, began_at=second + 0.5, now=second + 0.5 + number / 10)
        limits.append(state.limit)
    assert limits == [4, 2, 1, 1, 1]


def test_refusals_far_from_each_other_are_no_burst():
    state = FULL
    for second in range(0, 20, 2):
        state = refused(state, began_at=second, now=second + 0.1)
    assert state.limit == 8


def test_it_climbs_back_by_one_a_round():
    state, rounds = AdaptiveLimit(level=4.0), []
    for second in range(1, 7):
        for _ in range(state.limit + 1):
            state = went_well(state, began_at=second, now=second)
        rounds.append(state.limit)
    assert rounds == [5, 6, 7, 8, 8, 8]
    assert state.level == 8.0


def test_what_began_before_the_burst_says_nothing_after_it():
    state = refused(refused(FULL, began_at=0.0, now=1.0), began_at=0.0, now=1.0)
    assert went_well(state, began_at=0.9, now=2.0) == state
    assert refused(state, began_at=0.9, now=2.0) == state


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 2), st.floats(0, 5))))
def test_it_stays_within_its_bounds(calls):
    state, now = FULL, 0.0
    for is_refused, later, ago in calls:
        now += later
        after = state.record(refused=is_refused, began_at=now - ago, now=now, policy=POLICY)
        assert 1 <= after.limit <= 8
        assert after.limit >= state.limit // 2
        state = after


@settings(max_examples=30, deadline=None)
@given(
    callers=st.integers(4, 30),
    per_s=st.floats(5, 60),
    latency_s=st.floats(0.02, 0.1),
    burst=st.integers(5, 60),
)
def test_a_server_that_limits_by_rate_is_used_to_four_fifths_at_least(callers, per_s, latency_s, burst):
    """Callers that go on at once, and wait for a second when refused, as accounts do."""
    burst = max(burst, per_s)  # it forgives the second that it asks for
    # What is offered must exceed what the limit allows: else nothing is limited.
    wanted_s = min(per_s, 0.9 / latency_s)
    state, tokens, now, granted = FULL, 0.0, 0.0, 0
    order = itertools.count()
    waiting, busy = list(range(callers)), 0
    events = []  # (instant, number, kind, caller, began_at)
    filled_at, until = 0.0, 60.0

    def start():
        nonlocal busy
        while waiting and busy < state.limit:
            busy += 1
            heapq.heappush(events, (now + latency_s, next(order), "answer", waiting.pop(0), now))

    start()
    while events and now < until:
        now, _, kind, caller, began_at = heapq.heappop(events)
        if kind == "answer":
            busy -= 1
            tokens, filled_at = min(burst, tokens + (now - filled_at) * per_s), now
            is_refused = tokens < 1
            state = state.record(refused=is_refused, began_at=began_at, now=now, policy=POLICY)
            if is_refused:
                heapq.heappush(events, (now + 1.0, next(order), "back", caller, now))
            else:
                tokens, granted = tokens - 1, granted + 1
                waiting.append(caller)
        else:
            waiting.append(caller)
        start()
    assert granted >= 0.8 * wanted_s * until

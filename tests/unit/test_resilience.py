"""Waiting, limiting and breaking, as decisions."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.resilience.backoff import MAX_NOT_BEFORE_S, failing_for, full_jitter, told_to_wait
from proxy.resilience.breaker import Admission, Breaker, BreakerPolicy, Phase, Ticket
from proxy.resilience.limiter import Bucket, Rank, Rate, ahead_of, next_rank

NOW = 1_795_000_000.0


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_jitter_is_bounded(attempt, draw):
    wait_s = full_jitter(attempt, base_s=0.25, cap_s=5, draw=draw)
    assert 0 <= wait_s <= min(5, 0.25 * 2.0 ** min(attempt - 1, 40))


def test_failing_keys_wait_longer_each_time():
    assert [failing_for(n, base_s=5, cap_s=60) for n in range(1, 7)] == [5, 10, 20, 40, 60, 60]


WAITS = [
    (429, {"retry-after": "5"}, 5),
    (503, {"retry-after": "5"}, 5),
    (500, {"retry-after": "5"}, None),
    (429, {"retry-after": "0"}, 0),
    (429, {"retry-after": "-3"}, None),
    (429, {"retry-after": "soon"}, None),
    (429, {"retry-after": formatdate(NOW + 5, usegmt=True)}, 5),
    (429, {"retry-after": formatdate(NOW - 50, usegmt=True)}, 0),
    (429, {"retry-after": formatdate(NOW + 905, usegmt=True), "date": formatdate(NOW + 900, usegmt=True)}, 5),
    (429, {"retry-after": "Sun, 99 Nov 2026 00:00:00 GMT"}, None),
    (429, {"retry-after": "9" * 400}, None),
    (429, {"retry-after": "99999999"}, MAX_NOT_BEFORE_S),
    (429, {"ratelimit-reset": str(round(NOW) + 7)}, 7),
    (429, {"ratelimit-reset": "7"}, 7),
    (429, {"ratelimit-reset": "x"}, None),
    (429, {"retry-after": "3", "ratelimit-reset": str(round(NOW) + 7)}, 3),
    (200, {"ratelimit-reset": str(round(NOW) + 7), "ratelimit-remaining": "1"}, None),
    (200, {"ratelimit-reset": str(round(NOW) + 7), "ratelimit-remaining": "0"}, 7),
    (429, {}, None),
]


@pytest.mark.parametrize(("status", "headers", "expected"), WAITS)
def test_told_to_wait(status, headers, expected):
    assert told_to_wait(status, headers, wall_now=NOW) == expected


@given(st.sampled_from([200, 429, 503]), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_any_header_is_a_bounded_wait_or_none(status, retry_after, reset, date):
    headers = {
        "retry-after": retry_after,
        "ratelimit-reset": reset,
        "ratelimit-remaining": "0",
        "date": date,
    }
    wait_s = told_to_wait(status, headers, wall_now=NOW)
    assert wait_s is None or 0 <= wait_s <= MAX_NOT_BEFORE_S


POLICY = BreakerPolicy(threshold=3, cooldown_s=60, probe_s=10)


class BreakerMachine(RuleBasedStateMachine):
    """Calls come and end in any order, at any time; a probe may never report."""

    def __init__(self):
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.under_way = []
        self.in_a_row = 0
        self.refused_since = None
        self.last_probe_at = None
        self.last_probe = None

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 11.0, 59.0, 61.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def call(self):
        before = self.breaker
        self.breaker, ticket = before.admit(self.now, POLICY)
        if before.phase is Phase.CLOSED:
            assert ticket.admission is Admission.PASS
        if ticket.admission is Admission.PROBE:
            assert self.last_probe_at is None or self.now >= self.last_probe_at + POLICY.probe_s
            self.last_probe_at = self.now
            self.last_probe = ticket
        if ticket.admission is not Admission.REFUSE:
            self.under_way.append(ticket)

    @precondition(lambda self: self.under_way)
    @rule(alive=st.booleans(), data=st.data())
    def end(self, alive, data):
        ticket = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        before = self.breaker
        self.breaker = before.record(ticket, self.now, POLICY, alive=alive)
        if before.phase is Phase.CLOSED and ticket.admission is Admission.PASS:
            self.in_a_row = 0 if alive else self.in_a_row + 1
            assert (self.breaker.phase is Phase.OPEN) == (self.in_a_row >= POLICY.threshold)
        elif before.phase is Phase.HALF_OPEN and ticket == self.last_probe:
            assert self.breaker.phase is (Phase.CLOSED if alive else Phase.OPEN)
            self.last_probe_at = None
        else:
            assert self.breaker == before, "a call of an earlier phase decided something"
        if self.breaker.phase is Phase.CLOSED:
            self.in_a_row = self.breaker.failures

    @precondition(lambda self: self.last_probe in self.under_way)
    @rule()
    def probe_never_sets_out(self):
        self.under_way.remove(self.last_probe)
        self.breaker = self.breaker.abandon(self.last_probe, self.now)
        self.last_probe_at = None

    @invariant()
    def never_stuck(self):
        """However it stands, after cooldown and probe time somebody is let through."""
        later = self.now + POLICY.cooldown_s + POLICY.probe_s
        assert self.breaker.admit(later, POLICY)[1].admission is not Admission.REFUSE


TestBreaker = BreakerMachine.TestCase


def test_a_probe_that_was_replaced_decides_nothing():
    breaker = Breaker()
    for _ in range(3):
        breaker = breaker.record(Ticket(Admission.PASS), 0.0, POLICY, alive=False)
    breaker, first = breaker.admit(61.0, POLICY)
    breaker, second = breaker.admit(72.0, POLICY)
    closed = breaker.record(second, 73.0, POLICY, alive=True)
    assert closed.phase is Phase.CLOSED
    assert closed.record(first, 74.0, POLICY, alive=False) == closed
    opened = breaker.record(second, 73.0, POLICY, alive=False)
    assert opened.record(first, 74.0, POLICY, alive=True) == opened


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5)), max_size=60))
def test_the_bucket_never_gives_more_than_the_rate(steps):
    rate = Rate(per_s=5, burst=6)
    bucket, now, taken = Bucket(6.0, 0.0), 0.0, []
    for pause_s, count in steps:
        now += pause_s
        for _ in range(count):
            bucket, got = bucket.take(rate, now)
            if got:
                taken.append(now)
    for start in taken:
        assert sum(start <= at <= start + 10 for at in taken) <= 6 + 50


@given(st.floats(0, 6), st.integers(0, 50))
def test_the_wait_is_just_long_enough(tokens, ahead):
    rate = Rate(per_s=5, burst=6)
    bucket = Bucket(tokens, 100.0)
    wait_s = bucket.wait_s(rate, 100.0, ahead)
    assert wait_s == pytest.approx(max(0.0, (ahead + 1 - tokens) / 5))


def test_the_bucket_of_a_clock_set_back_is_not_refilled_by_it():
    rate = Rate(per_s=5, burst=6)
    bucket = Bucket(1.0, 100.0).refilled(rate, 50.0)
    assert bucket == Bucket(1.0, 100.0)


@given(st.dictionaries(st.sampled_from(Rank), st.integers(0, 20)), st.integers(1, 80))
def test_ranks_take_turns(waiting, turns):
    left = dict(waiting)
    served, last = [], Rank.MISS
    for _ in range(turns):
        rank = next_rank(left, last)
        if rank is None:
            assert not any(left.values())
            break
        left[rank] -= 1
        last = rank
        served.append(rank)
        if rank is Rank.DOUBTFUL:
            assert not left.get(Rank.REFRESH)
            assert not left.get(Rank.MISS)
    both = min(waiting.get(Rank.REFRESH, 0), waiting.get(Rank.MISS, 0))
    head = served[: 2 * both]
    assert head.count(Rank.REFRESH) >= len(head) // 2, "refreshes keep half"
    assert head.count(Rank.MISS) >= len(head) // 2, "misses keep half"


@given(
    st.dictionaries(st.sampled_from(Rank), st.integers(0, 20)),
    st.sampled_from(Rank),
    st.sampled_from([Rank.REFRESH, Rank.MISS]),
)
def test_who_goes_before_a_newcomer(waiting, newcomer, last):
    left = {rank: waiting.get(rank, 0) for rank in Rank}
    left[newcomer] += 1
    mine = left[newcomer]
    served, started_with = 0, last
    while mine:
        rank = next_rank(left, last)
        left[rank] -= 1
        last = rank
        served += 1
        mine -= rank is newcomer
    before = served - 1
    assert ahead_of(newcomer, waiting, started_with) == before

"""The last hour is told as it was, from what the processes have counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.clock import FakeClock
from proxy.ops.dashboard.history import KEPT_S, LATELY_S, STEP_S, History, moment_of
from proxy.ops.families import LAYOUT
from proxy.tally import Board, new_memory

METHOD = "app.bsky.feed.getAuthorFeed"


class Host:
    """A host of one process, and its history."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.board = Board(LAYOUT, new_memory())
        self.tally = self.board.tally()
        self.history = History(self.moment, self.clock.steady)
        self.history.beat()

    def moment(self):
        steady_s = self.clock.steady()
        return moment_of(self.board.totals(steady_s), at=self.clock.wall(), steady_s=steady_s)

    def read(self, outcome, count=1):
        self.tally.add("feedproxy_requests", METHOD, outcome, by=count)

    def pass_time(self, seconds=STEP_S):
        self.clock.advance(seconds)
        self.history.beat()


@pytest.fixture
def host():
    return Host()


def test_rates_are_those_of_each_step(host):
    host.read("hit", 30)
    host.read("stale", 5)
    host.read("negative", 5)
    host.read("miss", 10)
    host.tally.add("feedproxy_upstream_requests", "200", by=10)
    host.tally.add("feedproxy_upstream_requests", "503", by=5)
    host.pass_time()
    host.tally.add("feedproxy_attempts", "published", by=10)
    for outcome in ("failed", "refused", "credentials", "waited", "abandoned"):
        host.tally.add("feedproxy_attempts", outcome, by=5)
    host.pass_time()
    first, second = host.history.steps()
    assert (first.reads, first.hit_ratio, first.upstream, first.published) == (10, 0.8, 3, 0)
    assert (second.reads, second.hit_ratio, second.upstream) == (0, None, 0)
    assert (second.published, second.failed) == (2, 3)
    assert first.at + STEP_S == second.at == host.clock.wall()


def test_lately_is_the_last_minute(host):
    host.read("miss", 1000)
    host.pass_time()
    for _ in range(round(LATELY_S / STEP_S)):
        host.read("hit", 20)
        host.pass_time()
    host.read("hit", 20)
    host.clock.advance(1)
    lately = host.history.lately()
    assert lately.hit_ratio == 1
    assert lately.reads == pytest.approx(4, rel=0.1)


def test_at_first_nothing_is_known(host):
    assert list(host.history.steps()) == []
    lately = host.history.lately()
    assert (lately.reads, lately.hit_ratio) == (0, None)


def test_who_has_seen_some_is_told_the_rest(host):
    for _ in range(4):
        host.pass_time()
    seen = [step.at for step in host.history.steps()]
    assert [step.at for step in host.history.steps(seen[1])] == seen[2:]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 900), st.integers(0, 50)), min_size=1, max_size=20))
def test_whatever_the_pace_no_read_is_lost_within_the_hour(events):
    host = Host()
    for passed_s, reads in events:
        host.read("hit", reads)
        host.pass_time(passed_s)
    steps = list(host.history.steps())
    assert len(steps) <= KEPT_S / STEP_S
    told, before = 0.0, FakeClock().wall()
    for step in steps:
        assert step.at - before >= STEP_S - 1e-3
        told += step.reads * (step.at - before)
        before = step.at
    host.pass_time(STEP_S + 1)  # what came after the last step is told with the next
    last = list(host.history.steps())[len(steps) :]
    told += sum(step.reads * (step.at - before) for step in last)
    assert told == pytest.approx(host.moment().reads, rel=1e-3)


def test_it_keeps_an_hour_and_no_more(host):
    for _ in range(round(KEPT_S / STEP_S) + 100):
        host.pass_time()
    steps = list(host.history.steps())
    assert len(steps) == KEPT_S / STEP_S
    assert host.clock.wall() - steps[0].at < KEPT_S


def test_a_clock_that_is_set_back_turns_nothing_round(host):
    for reads in (50, 100):
        host.read("hit", reads)
        host.clock.step(-3600)
        host.pass_time()
    steps = list(host.history.steps())
    assert [step.reads for step in steps] == [10, 20]
    assert [step.at for step in steps] == [host.clock.wall() - STEP_S, host.clock.wall()]

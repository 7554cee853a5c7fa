"""Who hangs is ended; who was held up together with whoever looks is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.hanging import HUNG_S, HangWatch


def looks(watch, beats_at, times):
    """What each look finds, until one finds something."""
    for now in times:
        if hung := watch.look(now, beats_at(now)):
            return now, hung
    return None


def every(seconds, until, start=0.0):
    return [start + n * seconds for n in range(1, round(until / seconds) + 1)]


def test_who_is_silent_for_so_long_hangs_and_others_do_not():
    watch = HangWatch()
    found = looks(
        watch, lambda now: {"hung": 1000, "well": 1 + int(now * 1000)}, every(watch.look_s, 10 * HUNG_S)
    )
    assert found == (watch.look_s + HUNG_S, ["hung"])


def test_who_has_not_begun_is_left_alone():
    watch = HangWatch()
    assert looks(watch, lambda _now: {"new": 0}, every(watch.look_s, 10 * HUNG_S)) is None


def test_a_replacement_has_all_the_time_again():
    watch = HangWatch()
    looks(watch, lambda _now: {"first": 7}, every(watch.look_s, HUNG_S))
    found = looks(watch, lambda _now: {"second": 7}, every(watch.look_s, 2 * HUNG_S, start=HUNG_S))
    assert found == (2 * HUNG_S + watch.look_s, ["second"])


@given(st.lists(st.floats(10.0, 1e6), max_size=20))
def test_a_host_that_sleeps_costs_nothing(naps):
    """Everything stands still during a nap; after it a child beats before the look after the next."""
    watch, now, awake = HangWatch(), 0.0, 0.0
    for nap in naps:
        for _ in range(4):
            now, awake = now + watch.look_s, awake + watch.look_s
            assert watch.look(now, {"child": 1 + int(awake // (4 * watch.look_s))}) == []
        now += nap + watch.look_s
        assert watch.look(now, {"child": 1 + int(awake // (4 * watch.look_s))}) == []


def test_a_host_on_which_every_look_is_late_ends_nobody():
    watch = HangWatch()
    assert looks(watch, lambda _now: {"child": 1}, every(2 * watch.look_s, 10 * HUNG_S)) is None

"""What each client has caused in the last minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.resilience.shares import MAX_CLIENTS, WINDOW_S, Shares, Spenders, spent_for_s

waits = st.lists(st.floats(0, 50), max_size=60)


@given(st.integers(1, 8), waits)
def test_no_minute_has_more_than_the_share(limit, waits_s):
    shares, now, gone = Shares(limit), 1000.0, []
    for wait_s in waits_s:
        now += wait_s
        if shares.spent_for_s("one", now) == 0:
            shares.take("one", now)
            gone.append(now)
    for start in gone:
        assert sum(start <= at < start + WINDOW_S for at in gone) <= limit


@given(st.integers(1, 8), waits)
def test_who_comes_back_when_it_was_told_to_may_go_and_not_before(limit, waits_s):
    shares, now = Shares(limit), 1000.0
    for wait_s in waits_s:
        now += wait_s
        left_s = shares.spent_for_s("one", now)
        if left_s > 0:
            assert left_s <= WINDOW_S + 1e-6
            assert shares.spent_for_s("one", now + left_s * 0.99) > 0
            now += left_s + 1e-6
        assert shares.spent_for_s("one", now) == 0
        shares.take("one", now)


def test_the_limit_may_have_been_higher():
    assert spent_for_s([10.0, 20.0, 30.0], 2, now=31.0) == 20.0 + WINDOW_S - 31.0


def test_what_was_given_back_was_not_spent():
    shares = Shares(2)
    shares.take("one", 1.0)
    shares.take("one", 2.0)
    shares.give_back("one", 2.0)
    assert shares.spent_for_s("one", 3.0) == 0
    shares.give_back("one", 2.0)
    shares.give_back("other", 2.0)
    shares.take("one", 3.0)
    assert shares.spent_for_s("one", 4.0) == 1.0 + WINDOW_S - 4.0


def test_clients_of_more_than_a_minute_ago_are_forgotten():
    shares = Shares(2)
    for number in range(50):
        shares.take(f"client{number}", number * 10.0)
    assert len(shares) == 6


def test_there_is_room_for_so_many_clients_and_no_more():
    shares, spenders = Shares(1), Spenders()
    for number in range(MAX_CLIENTS + 10):
        shares.take(f"client{number}", 1.0)
        spenders.note(f"client{number}", 60.0)
    assert len(shares) == len(spenders) == MAX_CLIENTS
    assert shares.spent_for_s("client0", 1.0) == spenders.left_s("client0", 1.0) == 0
    assert shares.spent_for_s(f"client{MAX_CLIENTS}", 1.0) == WINDOW_S
    assert spenders.left_s(f"client{MAX_CLIENTS}", 1.0) == 59.0


def test_who_was_refused_is_so_until_then():
    spenders = Spenders()
    spenders.note("one", 10.0)
    assert spenders.left_s("one", 4.0) == 6.0
    assert spenders.left_s("one", 10.0) == 0
    assert len(spenders) == 0

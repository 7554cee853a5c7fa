"""Ages, lifetimes and what is said of them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.feeds.freshness import (
    Freshness,
    Lifetime,
    Windows,
    cache_control,
    freshness,
    initial_age,
    lifetime,
    updated_at_text,
)
from proxy.feeds.wording import wording

seconds = st.floats(0, 1e7)
lifetimes = {
    "ttl_s": st.floats(0.1, 1e6),
    "fraction": st.floats(0, 1, exclude_max=True),
    "initial_age_s": seconds,
    "cost_s": st.floats(0, 100),
    "early_draw": st.floats(0, 50),
}
ORDER = [Freshness.FRESH, Freshness.EARLY, Freshness.STALE, Freshness.OLD, Freshness.EXPIRED]


@given(st.fixed_dictionaries(lifetimes))
def test_a_lifetime_is_the_ttl_within_a_tenth(given_values):
    life = lifetime(**given_values)
    ttl_s, born_s = given_values["ttl_s"], given_values["initial_age_s"]
    assert life.fresh_until_s >= 0.9 * ttl_s * (1 - 1e-9)
    assert life.fresh_until_s <= max(1.1 * ttl_s, born_s + 0.11 * ttl_s) * (1 + 1e-9)
    assert life.fresh_until_s - 0.111 * ttl_s <= life.refresh_at_s <= life.fresh_until_s
    assert life.fresh_until_s > born_s, "nothing is stale on arrival, or each request would be a refresh"


def test_jitter_spreads_what_was_filled_together():
    same = {"ttl_s": 600, "initial_age_s": 0, "cost_s": 0, "early_draw": 0}
    assert lifetime(fraction=0, **same).fresh_until_s == 540
    assert lifetime(fraction=0.5, **same).fresh_until_s == 600
    assert 659 < lifetime(fraction=0.999, **same).fresh_until_s < 660


def test_the_early_refresh_is_drawn_from_the_cost():
    same = {"ttl_s": 600, "fraction": 0.5, "initial_age_s": 0}
    assert lifetime(cost_s=0.3, early_draw=2, **same).refresh_at_s == pytest.approx(599.4)
    assert lifetime(cost_s=100, early_draw=10, **same).refresh_at_s == 540, "a tenth of the TTL at most"


@given(st.fixed_dictionaries(lifetimes), seconds, seconds, seconds, seconds)
def test_an_answer_only_gets_staler(given_values, swr_s, sie_s, age_s, more_s):
    life = lifetime(**given_values)
    windows = Windows(stale_while_revalidate_s=swr_s, stale_if_error_s=sie_s)
    one, other = (
        freshness(age, life, windows, negative=False, from_future=False) for age in (age_s, age_s + more_s)
    )
    assert ORDER.index(one) <= ORDER.index(other)
    assert (one in (Freshness.FRESH, Freshness.EARLY)) == (age_s < life.fresh_until_s)


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [
        (0, Freshness.FRESH),
        (89.9, Freshness.FRESH),
        (90, Freshness.EARLY),
        (99.9, Freshness.EARLY),
        (100, Freshness.STALE),
        (119.9, Freshness.STALE),
        (120, Freshness.OLD),
        (299.9, Freshness.OLD),
        (300, Freshness.EXPIRED),
    ],
)
def test_the_bounds(age_s, expected):
    windows = Windows(stale_while_revalidate_s=20, stale_if_error_s=200)
    assert freshness(age_s, Lifetime(100, 90), windows, negative=False, from_future=False) is expected


@pytest.mark.parametrize(("age_s", "expected"), [(59.9, Freshness.FRESH), (60, Freshness.EXPIRED)])
def test_negative_answers_have_no_stale_window(age_s, expected):
    windows = Windows(stale_while_revalidate_s=1000, stale_if_error_s=1000)
    assert freshness(age_s, Lifetime(60, 60), windows, negative=True, from_future=False) is expected


def test_an_answer_from_the_future_is_served_and_refreshed():
    windows = Windows(stale_while_revalidate_s=10, stale_if_error_s=10)
    assert freshness(0, Lifetime(60, 60), windows, negative=False, from_future=True) is Freshness.STALE
    assert freshness(0, Lifetime(60, 60), windows, negative=True, from_future=True) is Freshness.EXPIRED


@given(st.text(max_size=12) | st.none(), st.floats(-10, 100))
def test_the_initial_age_is_never_negative_nor_absurd(header, delay_s):
    assert 0 <= initial_age(header, delay_s) <= 366 * 86_400


@pytest.mark.parametrize(
    ("header", "delay_s", "expected"),
    [(None, 0.25, 0.25), ("100", 0.5, 100.5), ("-5", 0, 0), ("x", 0, 0), ("1.5", 0, 0), ("", 1, 1)],
)
def test_initial_age(header, delay_s, expected):
    assert initial_age(header, delay_s) == expected


def test_recipients_subtract_the_age():
    assert cache_control(100.9, 30, 604_800) == (
        "public, max-age=130, stale-while-revalidate=60, stale-if-error=604800"
    )


@given(st.floats(0, 4e9), st.floats(0, 1e8))
def test_updated_at_is_the_instant_of_the_age(wall_now, age_s):
    told = datetime.fromisoformat(updated_at_text(wall_now, age_s))
    assert told.tzinfo == UTC
    assert abs(told.timestamp() - (wall_now - age_s)) <= 1


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        (0, "updated just now"),
        (59.9, "updated just now"),
        (60, "updated a minute ago"),
        (185, "updated 3 minutes ago"),
        (3600, "updated an hour ago"),
        (7300, "updated 2 hours ago"),
        (86_400, "updated a day ago"),
        (86_400 * 400, "updated 1 year, 1 month ago"),
    ],
)
def test_wording(age_s, text):
    assert wording("en")(age_s).decode() == text


def test_wording_fits_into_a_header():
    assert wording("de_DE")(185) == b"vor 3 Minuten"
    assert wording("fr_FR")(7300).decode("latin-1") == "il y a 2 heures"
    assert wording("es_ES")(86_400 * 2).decode("latin-1") == "hace 2 días"
    assert wording("ja_JP")(185).startswith(b"3%E5%88%86")
    assert wording("en")(185) == b"updated 3 minutes ago", "another language left its mark"

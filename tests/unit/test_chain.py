"""What is stored of a chain, and when it is told again."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.syndication.chain import (
    NOTIFY_DELAYS_S,
    Callback,
    CallbackStatus,
    Errand,
    ErrandKind,
    callback_from_words,
    errand_from_fields,
    is_errand,
    notification_id,
    notify_delay_s,
)

NAME = "job_1::notify:blog:3"
FIELDS = {b"job": b"job_1", b"site": b"blog", b"url": b"https://blog.example/", b"number": b"2"}
DAY_S = 86400


def test_words_are_read_back():
    assert callback_from_words("2 retrying 3 1795000000000 answered 503 and more") == Callback(
        number=2,
        status=CallbackStatus.RETRYING,
        attempts=3,
        at_ms=1795000000000,
        error="answered 503 and more",
    )
    assert callback_from_words("4") == Callback(number=4)
    assert callback_from_words("") == Callback()


@pytest.mark.parametrize("text", ["x", "1 unheard-of 0 0 ", "1 failed x 0 "])
def test_damaged_words_are_an_error(text):
    with pytest.raises(ValueError, match=r".+"):
        callback_from_words(text)


def test_an_errand_is_read():
    assert is_errand(NAME)
    assert not is_errand("job_1:main")
    wanted = Errand(kind=ErrandKind.NOTIFY, job="job_1", site="blog", url="https://blog.example/", number=2)
    assert errand_from_fields(NAME, FIELDS) == wanted


@pytest.mark.parametrize("change", [{b"job": None}, {b"number": b"x"}, {b"site": b"\xff"}])
def test_a_damaged_errand_is_none(change):
    fields = {name: value for name, value in (FIELDS | change).items() if value is not None}
    assert errand_from_fields(NAME, fields) is None
    assert errand_from_fields("job_1::other:blog:3", FIELDS) is None


def test_each_end_has_an_id_of_its_own():
    ids = {notification_id(job, number) for job in ("job_1", "job_2") for number in (1, 2)}
    assert ids == {"msg_1_1", "msg_1_2", "msg_2_1", "msg_2_2"}


@given(st.floats(0, 1, exclude_max=True))
def test_it_is_told_again_for_most_of_a_day_and_never_longer(draw):
    delays = [notify_delay_s(failures, draw) for failures in range(1, len(NOTIFY_DELAYS_S) + 1)]
    assert DAY_S * 0.75 < sum(delays) < DAY_S
    assert all(earlier <= later for earlier, later in itertools.pairwise(delays))
    assert notify_delay_s(len(NOTIFY_DELAYS_S) + 1, draw) is None
    assert notify_delay_s(0, draw) is None

"""When the breaker of an account opens, and when not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.resilience.account_breaker import AccountBreaker, AccountBreakerPolicy, Sign

POLICY = AccountBreakerPolicy(threshold=3, cooldown_s=900)
NOW = 1000.0


def after(*attempts: tuple[Sign, str], used_up: bool = False) -> AccountBreaker:
    """The breaker after these; the last of them may have been a post's last attempt."""
    breaker = AccountBreaker()
    for number, (sign, post) in enumerate(attempts, start=1):
        breaker = breaker.record(sign, post, NOW, POLICY, used_up=used_up and number == len(attempts))
    return breaker


def failing(*posts: str) -> list[tuple[Sign, str]]:
    return [(Sign.FAILED, post) for post in posts]


def test_three_failures_of_two_posts_open_it():
    assert not after(*failing("a", "b")).broken
    assert after(*failing("a", "a", "b")).open_until == NOW + 900


def test_one_post_opens_it_only_when_it_has_used_up_its_retries():
    assert not after(*failing("a", "a", "a", "a")).broken
    assert after(*failing("a", "a", "a", "a"), used_up=True).broken
    assert not after(*failing("a", "a"), used_up=True).broken


def test_an_answer_ends_the_row_and_other_failures_do_not():
    assert not after(*failing("a", "b"), (Sign.ALIVE, "c"), *failing("a", "b")).broken
    assert after(*failing("a", "b"), (Sign.NOTHING, "c"), *failing("a")).broken


def test_a_failed_probe_opens_it_again_at_once_and_a_success_closes_it():
    broken = after(*failing("a", "a", "b"))
    again = broken.record(Sign.FAILED, "a", NOW + 901, POLICY, used_up=False)
    assert again.open_until == NOW + 901 + 900
    assert broken.record(Sign.NOTHING, "a", NOW + 901, POLICY, used_up=False) == broken
    assert broken.record(Sign.ALIVE, "a", NOW + 901, POLICY, used_up=False) == AccountBreaker()


@given(st.lists(st.tuples(st.sampled_from(Sign), st.sampled_from("ab")), max_size=30))
def test_it_is_never_open_without_a_row_of_failures(attempts):
    breaker = after(*attempts)
    row = 0
    for sign, _ in reversed(attempts):
        if sign is Sign.ALIVE:
            break
        row += sign is Sign.FAILED
    assert breaker.failures == row
    if breaker.broken:
        assert row >= POLICY.threshold
        assert breaker.several

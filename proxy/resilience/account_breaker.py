"""The circuit breaker of one account as a pure decision; the oracle of its twin in store/lua/queue*.lua.

Attempts of one account follow one another, so there is no call that set out before the breaker opened, and
the first attempt after the cooldown is the only probe.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Sign(enum.Enum):
    """What an attempt says of the account's server."""

    ALIVE = "alive"  # it answered: published, or refused for good
    FAILED = "failed"  # login, transport or a 5xx
    NOTHING = "nothing"  # any other failure


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBreakerPolicy:
    """`threshold` failures in a row open the breaker for `cooldown_s`."""

    threshold: int
    cooldown_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBreaker:
    """The state: failures in a row, of which posts, and until when (seconds of any clock) it is open."""

    failures: int = 0
    post: str | None = None  # of the last failure
    several: bool = False  # whether the row is of two posts or more
    broken: bool = False  # opened, and no attempt has succeeded since
    open_until: float = 0.0

    def record(
        self, sign: Sign, post: str, now: float, policy: AccountBreakerPolicy, *, used_up: bool
    ) -> AccountBreaker:
        """Note how an attempt for `post` ended; `used_up`: it was the last that this post gets.

        It opens when enough failures in a row come from two posts, or when one post has used up its retries:
        a single bad post does not hold up the others of its account. Once broken, the failure of a probe
        opens it again.
        """
        if sign is Sign.NOTHING:
            return self
        if sign is Sign.ALIVE:
            return AccountBreaker()
        after = replace(
            self,
            failures=self.failures + 1,
            post=post,
            several=self.several or self.post not in (None, post),
        )
        if after.broken or (after.failures >= policy.threshold and (after.several or used_up)):
            return replace(after, broken=True, open_until=now + policy.cooldown_s)
        return after

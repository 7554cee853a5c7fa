"""The operator's token: shown as a bearer token, compared in constant time, guessed at slowly."""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from typing import Final

from pydantic import SecretStr

from proxy.clock import Clock
from proxy.errors import Rejected
from proxy.resilience.limiter import Bucket, Rate

# Wrong tokens of one client: ten at once, then one in ten seconds.
_FAILURES: Final = Rate(per_s=0.1, burst=10)
_MAX_CLIENTS: Final = 10_000


class AdminToken:
    """Checks the token that `ADMIN_TOKEN` sets. Failures are counted in this process."""

    def __init__(self, token: SecretStr | None, clock: Clock) -> None:
        self._token = None if token is None else token.get_secret_value().encode()
        self._clock = clock
        self._failures: OrderedDict[str, Bucket] = OrderedDict()

    @property
    def is_set(self) -> bool:
        """Whether there is one: without, nothing that needs it exists."""
        return self._token is not None

    def check(self, client: str, authorization: str | None) -> None:
        """See that the Authorization header of `client` carries the token.

        Raises Rejected: 401 if it does not, 429 after too many of those, whatever it carries.
        """
        now = self._clock.steady()
        bucket = self._failures.get(client) or Bucket(float(_FAILURES.burst), now)
        wait_s = bucket.wait_s(_FAILURES, now)
        if wait_s > 0:
            headers = (("Retry-After", str(math.ceil(wait_s))),)
            raise Rejected(429, "RateLimitExceeded", "too many wrong tokens", headers)
        scheme, _, given = (authorization or "").partition(" ")
        if (
            self._token is not None
            and scheme.lower() == "bearer"
            and hmac.compare_digest(given.strip().encode(), self._token)
        ):
            return
        self._failures[client], _ = bucket.take(_FAILURES, now)
        self._failures.move_to_end(client)
        while len(self._failures) > _MAX_CLIENTS:
            self._failures.popitem(last=False)
        raise Rejected(
            401, "AuthenticationRequired", "the admin token is wrong", (("WWW-Authenticate", "Bearer"),)
        )

"""The operator's token: shown as a bearer token, compared in constant time, guessed at slowly."""

from __future__ import annotations

import hmac
import math
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from proxy.clock import Clock
from proxy.errors import Rejected
from proxy.resilience.failures import FailureLimit
from proxy.resilience.limiter import Rate

# Wrong tokens of one client: ten at once, then one in ten seconds.
_FAILURES: Final = Rate(per_s=0.1, burst=10)


class AdminToken:
    """Checks the token that ADMIN_TOKEN sets; derives keys from it. Failures are counted in this process."""

    def __init__(self, token: SecretStr | None, clock: Clock) -> None:
        self._token = None if token is None else token.get_secret_value().encode()
        self._failures = FailureLimit(_FAILURES, clock)

    @property
    def is_set(self) -> bool:
        """Whether there is one: without, nothing that needs it exists."""
        return self._token is not None

    def key(self, purpose: str) -> bytes:
        """A key for one purpose that follows from the token. Raises ValueError when there is none."""
        if self._token is None:
            raise ValueError("of no token follows no key")
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(self._token)

    def check(self, client: str, authorization: str | None) -> None:
        """See that the Authorization header of `client` carries the token.

        Raises Rejected: 401 if it does not, 429 after too many of those, whatever it carries.
        """
        if (wait_s := self._failures.wait_s(client)) > 0:
            told = (("Retry-After", str(math.ceil(wait_s))),)
            raise Rejected(429, "RateLimitExceeded", "too many wrong tokens", told)
        scheme, _, given = (authorization or "").partition(" ")
        fits = self._token is not None and hmac.compare_digest(given.strip().encode(), self._token)
        if fits and scheme.lower() == "bearer":
            return
        self._failures.count(client)
        told = (("WWW-Authenticate", "Bearer"),)
        raise Rejected(401, "AuthenticationRequired", "the admin token is wrong", told)

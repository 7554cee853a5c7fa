"""What is counted of attempts to publish."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from proxy.clock import Clock
from proxy.instruments import Instruments
from proxy.syndication.attempt import (
    Credentials,
    Lease,
    Outcome,
    Permanent,
    Publish,
    Published,
    Transient,
    Wait,
)
from proxy.syndication.job import Delivery
from proxy.syndication.post import Post
from proxy.tracing import working

_NAMES: Final[Mapping[type, str]] = MappingProxyType(
    {
        Published: "published",
        Transient: "failed",
        Permanent: "refused",
        Wait: "waited",
        Credentials: "credentials",
    }
)
# The last: the lease or the store was lost meanwhile, and nothing came of it.
ATTEMPTS: Final = (*_NAMES.values(), "abandoned")


class CountedPublish:
    """See Publish: `publish`, with its attempts counted in this process's place."""

    def __init__(self, publish: Publish, instruments: Instruments, clock: Clock) -> None:
        self._publish = publish
        self._instruments = instruments
        self._clock = clock

    async def __call__(self, delivery: Delivery, post: Post, lease: Lease) -> Outcome:
        """See Publish."""
        began_at, ended = self._clock.steady(), "abandoned"
        tally, spans = self._instruments.tally, self._instruments.spans
        try:
            with working(spans, "attempt", "internal", None, delivery=delivery.id):
                outcome = await self._publish(delivery, post, lease)
            ended = _NAMES[type(outcome)]
            return outcome
        finally:
            tally.add("feedproxy_attempts", ended)
            tally.observe("feedproxy_attempt_seconds", self._clock.steady() - began_at)

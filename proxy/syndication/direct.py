"""The one synchronous attempt of the intake while the queue is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from proxy.bluesky.sessions import Sessions
from proxy.clock import Clock
from proxy.errors import LeaseLost, StoreError
from proxy.syndication.accounts import Accounts
from proxy.syndication.attempt import Publish, Published
from proxy.syndication.job import Delivery, DeliveryState, Job
from proxy.syndication.post import Post
from proxy.syndication.publisher import login_of
from proxy.telemetry import get_logger
from proxy.tenants import Site

# A CMS waits for the answer.
ATTEMPT_TIMEOUT_S: Final = 5.0
# For how long what the post is published with may be looked for.
ENRICH_S: Final = 2.0

_log = get_logger()


class DirectPublisher:
    """Publishes at once what cannot be queued; see `intake.PublishNow`.

    No intent is stored, as there is no store. It needs none: a post that came here is never tried again but
    by its CMS, and lands at the same record key. `closed` says of an account that it was paused, or its
    breaker open, when the queue was last heard of.
    """

    def __init__(
        self,
        publish: Publish,
        sessions: Sessions,
        accounts: Callable[[], Accounts],
        clock: Clock,
        *,
        closed: Callable[[str], bool],
    ) -> None:
        self._attempt = publish
        self._sessions = sessions
        self._accounts = accounts
        self._clock = clock
        self._closed = closed

    async def __call__(self, site: Site, post: Post, accounts: Sequence[str]) -> Mapping[str, Published]:
        """The accounts that have `post` now; all are tried side by side."""
        await self._accounts().warm()
        # A CMS that hangs up cancels its request, but must not cancel ours.
        outcomes = await asyncio.shield(
            asyncio.gather(*(self._publish(site, post, account) for account in accounts))
        )
        return {
            account: outcome
            for account, outcome in zip(accounts, outcomes, strict=True)
            if outcome is not None
        }

    async def _publish(self, site: Site, post: Post, account: str) -> Published | None:
        login = login_of(self._accounts(), account)
        # A login would count against the account each time a CMS tries again: only a session at hand serves.
        if login is None or self._closed(account) or not await self._sessions.remembered(login):
            return None
        lease = _Unqueued(site.name, post, account, self._clock)
        try:
            outcome = await self._attempt(lease.delivery, post, lease)
        except (LeaseLost, StoreError):
            return None
        if isinstance(outcome, Published):
            return outcome
        _log.warning("direct_attempt_failed", account=account, outcome=type(outcome).__name__)
        return None


class _Unqueued:
    """The lease of what is not in the queue: nobody else has it, and it ends soon."""

    def __init__(self, site: str, post: Post, account: str, clock: Clock) -> None:
        self.ends_at = clock.steady() + ATTEMPT_TIMEOUT_S
        self._clock = clock
        self.delivery = Delivery(job="", account=account, site=site, state=DeliveryState.ACTIVE)
        self.job = Job(
            id="",
            site=site,
            post=post.id,
            accounts=(account,),
            payload="",
            first_published_at_ms=post.published_at_ms,
        )

    async def intend(
        self, intent: bytes, cid: str, rkey: str, *, did: str = "", generation: int | None = None
    ) -> None:
        """Nothing is stored."""

    def expired(self) -> bool:
        """Whether the CMS has waited for too long."""
        return self._clock.steady() >= self.ends_at

"""What a worker and whoever publishes for it say to each other: lease, attempt, outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from proxy.syndication.job import Delivery, Job
from proxy.syndication.post import Post


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The record is on the account (or, for a deletion, is not any more).

    `found`: it was there already, from an earlier attempt or another tool. `degraded` says what the post had
    to go without.
    """

    uri: str
    cid: str
    found: bool = False
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transient:
    """The attempt failed, another may succeed. `retry_after_s`: not before, if told.

    `counts_for_breaker`: a failed login, transport or a 5xx; says something of the account's server.
    """

    reason: str
    retry_after_s: float | None = None
    counts_for_breaker: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing is wrong with the post: the whole account has to wait `for_s` seconds. Uses up no attempt."""

    for_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Permanent:
    """Refused for good; the server is alive, and nothing of this post is there."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The account cannot log in until a person does something: park it."""

    reason: str


Outcome = Published | Transient | Wait | Permanent | Credentials


class Lease(Protocol):
    """The right to deliver one post to one account, as long as nobody else got it."""

    @property
    def job(self) -> Job:
        """The job of the delivery, as it was when the lease began."""

    @property
    def ends_at(self) -> float:
        """The steady instant after which others may have taken the delivery over, as it is now."""

    async def intend(
        self, intent: bytes, cid: str, rkey: str, *, did: str = "", generation: int | None = None
    ) -> None:
        """Store what will be sent before it is sent: the intent (intent.py), CID and key of its first record.

        Counts as an attempt, once a lease. Raises LeaseLost when the lease is no longer ours, or when the
        post was edited meanwhile (then it comes back with the edit); StoreUnavailable when it is not known
        whether it was stored. In each case nothing may be sent.
        """

    def expired(self) -> bool:
        """Whether others may by now have taken the delivery over: then nothing may be sent."""


class Publish(Protocol):
    """Brings one post to one account, at most once however often it is called."""

    async def __call__(self, delivery: Delivery, post: Post, lease: Lease) -> Outcome:
        """One attempt. May raise LeaseLost and StoreError, which end the attempt without an outcome.

        `delivery.intent`, if any, is what an earlier attempt may have sent: only that may be sent again, or
        the same without its pictures where the PDS has refused these.
        `delivery.action` says whether to post or to delete.
        """

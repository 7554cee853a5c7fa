"""Exactly one record for each (account, post), however often and from wherever it is sent.

The record key follows from the post (rkey.py), the record is frozen before anything is sent (record.py), and
the PDS is asked to write it only where there is nothing or this very record. What is repeated finds itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, runtime_checkable

from proxy.bluesky.pds import Pds, Record
from proxy.bluesky.pins import Login
from proxy.bluesky.sessions import Session, Sessions
from proxy.bluesky.wire import REQUEST_TIMEOUT_S
from proxy.clock import Clock
from proxy.errors import (
    CredentialsRefused,
    LeaseLost,
    PdsBusy,
    PdsError,
    PdsRejected,
    PdsUnreachable,
    TokenRefused,
)
from proxy.syndication.accounts import Accounts
from proxy.syndication.attempt import Credentials, Lease, Outcome, Permanent, Published, Transient, Wait
from proxy.syndication.job import Action, Delivery
from proxy.syndication.post import Post
from proxy.syndication.record import FrozenRecord, cid_of, freeze, links_to, uris_in
from proxy.syndication.richtext import PLAIN_TEMPLATE
from proxy.syndication.rkey import POST_COLLECTION, is_key_of, record_key, record_uri
from proxy.telemetry import get_logger

# Whatever leads to an older post is taken for it; to a younger one only what a lost queue has posted: there
# may be several posts on one page, one after the other.
ADOPTED_FROM_AGE_S: Final = 600.0
# A queue that was lost counts from the start again. For so many deliveries it may be sent what it once knew,
# under the dates of today.
_RELEARNT: Final = 10_000

# Keys of other posts that one attempt steps over: they collide once in 10⁹.
_MAX_STEPS: Final = 5
# Sessions that one attempt goes through: an expired one, one of an account that moved.
_MAX_SESSIONS: Final = 4
_SWAP: Final = "InvalidSwap"

T = TypeVar("T")

_log = get_logger()


@runtime_checkable
class Bounded(Protocol):
    """A lease that says when it ends."""

    @property
    def ends_at(self) -> float:
        """The steady instant after which others may have taken the delivery over."""


@dataclass(slots=True)
class _Attempt:
    """One attempt, and what has been settled of it: a new session changes none of that."""

    delivery: Delivery
    post: Post
    lease: Lease
    did: str = ""
    generation: int = 0
    rkey: str = ""
    record: FrozenRecord | None = None
    intended: bool = False

    @property
    def uri(self) -> str:
        return record_uri(self.did, self.rkey)


class Publisher:
    """Publishes what a worker leases. `accounts` gives the accounts as they are at that moment."""

    def __init__(self, sessions: Sessions, pds: Pds, accounts: Callable[[], Accounts], clock: Clock) -> None:
        self._sessions = sessions
        self._pds = pds
        self._accounts = accounts
        self._clock = clock

    async def __call__(self, delivery: Delivery, post: Post, lease: Lease) -> Outcome:
        """One attempt; see `attempt.Publish`. Must not be canceled while a request is under way."""
        login = login_of(self._accounts(), delivery.account)
        if login is None:
            return Credentials(reason="this process has no password for the account")
        attempt = _Attempt(delivery, post, lease)
        carry_out = self._delete if delivery.action is Action.DELETE else self._post
        try:
            return await self._with_session(login, lease, lambda session: carry_out(attempt, session))
        except PdsError as error:
            return _outcome_of(error)

    async def _with_session(self, login: Login, lease: Lease, act: Callable[[Session], Awaitable[T]]) -> T:
        """Do `act` with the account's session; with another when the PDS does not take it."""
        session = await self._sessions.session(login, self._deadline(lease))
        for _ in range(_MAX_SESSIONS):
            try:
                return await act(session)
            except TokenRefused:
                session = await self._sessions.renewed(login, session, self._deadline(lease))
            except CredentialsRefused:
                moved = await self._sessions.moved(login, session, self._deadline(lease))
                if moved is None:
                    raise
                session = moved
        raise PdsUnreachable(f"{session.pds} does not take the tokens that it has given")

    async def _post(self, attempt: _Attempt, session: Session) -> Outcome:
        if attempt.record is None:
            if (refusal := self._settle(attempt, session.did)) is not None:
                return refusal
            if (found := await self._adopted(attempt, session)) is not None:
                return found
            self._freeze(attempt)
        for _ in range(_MAX_STEPS):
            await self._intend(attempt)
            outcome = await self._put(attempt, session)
            if outcome is not None:
                return outcome
            attempt.generation += 1
            attempt.rkey, attempt.intended = self._key(attempt), False
        return Permanent(reason=f"{_MAX_STEPS} record keys in a row belong to other posts")

    def _settle(self, attempt: _Attempt, did: str) -> Permanent | None:
        """Whose record it is and which key it has."""
        delivery, job = attempt.delivery, attempt.lease.job
        if delivery.intent and delivery.did not in ("", did):
            return Permanent(reason=f"it may have been sent to {delivery.did}, and the account is {did} now")
        attempt.did = did
        attempt.generation = max(delivery.generation, job.generation)
        attempt.rkey = delivery.rkey if delivery.intent and delivery.rkey else self._key(attempt)
        return None

    def _key(self, attempt: _Attempt) -> str:
        job = attempt.lease.job
        return record_key(
            did=attempt.did,
            site=job.site,
            post_id=job.post,
            published_at_ms=job.first_published_at_ms or attempt.post.published_at_ms,
            generation=attempt.generation,
        )

    async def _adopted(self, attempt: _Attempt, session: Session) -> Published | None:
        """A record that leads to the post already: of a queue that was lost since, or of another tool."""
        old = self._clock.wall() - attempt.post.published_at.timestamp() > ADOPTED_FROM_AGE_S
        if attempt.delivery.intent or not (old or 0 < attempt.delivery.seq <= _RELEARNT):
            return None
        records = await self._pds.list_records(
            session.pds, did=session.did, collection=POST_COLLECTION, deadline=self._deadline(attempt.lease)
        )
        for record in records:
            if (old or _is_ours(attempt, record)) and links_to(record.value, attempt.post.url):
                _log.info("post_adopted", job=attempt.delivery.job, uri=record.uri)
                return Published(uri=record.uri, cid=record.cid, found=True)
        return None

    def _freeze(self, attempt: _Attempt) -> None:
        """The record as it will be sent; as it was sent if it may have been."""
        site = self._accounts().sites.get(attempt.delivery.site)
        fresh = freeze(
            attempt.post,
            template=site.template if site else PLAIN_TEMPLATE,
            langs=site.langs if site else (),
            created_at=self._clock.wall(),
        )
        intent = attempt.delivery.intent
        attempt.record = FrozenRecord(intent, cid_of(json.loads(intent)), fresh.degraded) if intent else fresh

    async def _intend(self, attempt: _Attempt) -> None:
        record = attempt.record
        if record is None or attempt.intended:
            return
        await attempt.lease.intend(
            record.json_bytes, record.cid, attempt.rkey, did=attempt.did, generation=attempt.generation
        )
        attempt.intended = True

    async def _put(self, attempt: _Attempt, session: Session) -> Outcome | None:
        """Send the record. None: its key belongs to another post."""
        record = attempt.record
        if record is None or attempt.lease.expired():
            raise LeaseLost("the lease ended before the record was sent")
        try:
            stored = await self._pds.put_record(
                session.pds,
                access=session.access,
                did=attempt.did,
                collection=POST_COLLECTION,
                rkey=attempt.rkey,
                record=record.json_bytes,
                deadline=self._deadline(attempt.lease),
            )
        except PdsRejected as error:
            if error.code != _SWAP:
                raise
            return await self._taken(attempt, session)
        if stored.cid != record.cid:
            _log.warning("cid_differs", uri=stored.uri, ours=record.cid, theirs=stored.cid)
        return Published(uri=stored.uri, cid=stored.cid, found=not stored.written, degraded=record.degraded)

    async def _taken(self, attempt: _Attempt, session: Session) -> Outcome | None:
        """Another record has the key: this post's in other words, another post's (None), or neither."""
        there = await self._pds.get_record(
            session.pds,
            did=attempt.did,
            collection=POST_COLLECTION,
            rkey=attempt.rkey,
            deadline=self._deadline(attempt.lease),
        )
        if there is None:
            raise PdsUnreachable(f"the record {attempt.uri} was there and is gone")
        if _is_this_post(attempt, there):
            _log.info("post_found_again", job=attempt.delivery.job, uri=there.uri)
            return Published(uri=there.uri, cid=there.cid, found=True)
        if any(True for _ in uris_in(there.value)):
            _log.warning("record_key_taken", job=attempt.delivery.job, uri=there.uri)
            return None
        return Permanent(reason=f"conflict: {attempt.uri} is there, and is not this post")

    async def _delete(self, attempt: _Attempt, session: Session) -> Outcome:
        """Delete the record that was published, unless it has become another one since."""
        delivery = attempt.delivery
        uri = delivery.uri or record_uri(delivery.did or session.did, delivery.rkey)
        attempt.did, _, rkey = uri.removeprefix("at://").replace(f"/{POST_COLLECTION}/", " ").partition(" ")
        if attempt.did != session.did or not rkey:
            return Permanent(reason=f"{uri} is not a post of {session.did}")
        if attempt.lease.expired():
            raise LeaseLost("the lease ended before the record was deleted")
        try:
            await self._pds.delete_record(
                session.pds,
                access=session.access,
                did=session.did,
                collection=POST_COLLECTION,
                rkey=rkey,
                cid=delivery.cid,
                deadline=self._deadline(attempt.lease),
            )
        except PdsRejected as error:
            if error.code != _SWAP:
                raise
            return Permanent(reason=f"{uri} was changed since it was published, and stays")
        return Published(uri=uri, cid=delivery.cid)

    def _deadline(self, lease: Lease) -> float:
        """The steady instant by which a request must be over: none outlives the lease."""
        deadline = self._clock.steady() + REQUEST_TIMEOUT_S
        return min(deadline, lease.ends_at) if isinstance(lease, Bounded) else deadline


def login_of(accounts: Accounts, name: str) -> Login | None:
    """What logs the account in; None if it is not known here or its password is missing."""
    account, credential = accounts.accounts.get(name), accounts.credential(name)
    if account is None or credential is None:
        return None
    return Login(
        identifier=credential.identifier,
        password=credential.password,
        service=account.service,
        fingerprint=credential.fingerprint,
    )


def _is_ours(attempt: _Attempt, there: Record) -> bool:
    """Whether its key says that it is this post, published by a queue that was lost, under whatever date."""
    job, rkey = attempt.lease.job, there.uri.rpartition("/")[2]
    return is_key_of(rkey, did=attempt.did, site=job.site, post_id=job.post)


def _is_this_post(attempt: _Attempt, there: Record) -> bool:
    record = attempt.record
    if record is not None and there.cid == record.cid:
        return True
    return any(links_to(there.value, url) for url in _urls(attempt))


def _urls(attempt: _Attempt) -> Iterator[str]:
    """Where the post is, and where it was when its record was frozen."""
    yield attempt.post.url
    if attempt.record is not None:
        yield from uris_in(json.loads(attempt.record.json_bytes))


def _outcome_of(error: PdsError) -> Outcome:
    reason = str(error)
    match error:
        case PdsBusy():
            return Wait(for_s=error.wait_s, reason=reason)
        case PdsRejected():
            return Permanent(reason=reason)
        case CredentialsRefused():
            return Credentials(reason=reason)
        case PdsUnreachable():
            return Transient(reason=reason, retry_after_s=error.retry_after_s, counts_for_breaker=True)
        case _:
            return Transient(reason=reason, counts_for_breaker=True)

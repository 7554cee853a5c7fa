"""Exactly one record for each (account, post), however often and from wherever it is sent.

The record key follows from the post (rkey.py), the record is frozen before anything is sent (intent.py), and
the PDS is asked to write it only where there is nothing or this very record (`swapRecord: null`). What is
repeated finds itself. A thread is created in one commit, all of it or nothing.

Not every PDS knows `swapRecord: null`. To servers whose JSON has no difference between null and absent it
says nothing: some then overwrite, others refuse a repetition with a 5xx, and no answer tells which they are.
So nothing relies on it alone: whatever may be there already is looked at before it is sent again. Once an
intent is stored, an earlier attempt may have been sent: the record at its key is looked at. Before that the
account's last 100 records are listed, as neither a date, which may have been edited, nor a queue, which may
have been lost or away, says that a post is new. That costs each post a read, without a token, of some 100 KB.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import MAX_LISTED, Pds, Record
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
from proxy.syndication.intent import FrozenRecord, Intent, restore_intent
from proxy.syndication.job import Action, Delivery
from proxy.syndication.mentions import resolve_mentions
from proxy.syndication.post import Post
from proxy.syndication.record import freeze, is_about, links_to, texts_of, uris_in
from proxy.syndication.richtext import PLAIN_TEMPLATE
from proxy.syndication.rkey import POST_COLLECTION, is_key_of, record_key, record_uri, reply_key
from proxy.telemetry import get_logger

# Whatever is about an older post is taken for it, another tool's record too; for a younger one only what has
# a key of its own: there may be several posts on one page, one after the other.
ADOPTED_FROM_AGE_S: Final = 600.0

# Keys of other posts that one attempt steps over: they collide once in 10⁹.
_MAX_STEPS: Final = 5
# Sessions that one attempt goes through: an expired one, one of an account that moved.
_MAX_SESSIONS: Final = 4
_SWAP: Final = "InvalidSwap"

T = TypeVar("T")

_log = get_logger()


@dataclass(slots=True)
class _Attempt:
    """One attempt, and what has been settled of it: a new session changes none of that."""

    delivery: Delivery
    post: Post
    lease: Lease
    did: str = ""
    generation: int = 0
    rkey: str = ""
    intent: Intent | None = None
    # Whether there may be a record already, and it is to be looked at before anything is sent.
    looks: bool = False
    intended: bool = False

    @property
    def uri(self) -> str:
        return record_uri(self.did, self.rkey)


class Publisher:
    """Publishes what a worker leases. `accounts` gives the accounts as they are at that moment."""

    def __init__(
        self,
        sessions: Sessions,
        pds: Pds,
        identities: Identities,
        accounts: Callable[[], Accounts],
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._pds = pds
        self._identities = identities
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
        if attempt.intent is None and (early := await self._prepare(attempt, session)) is not None:
            return early
        for _ in range(_MAX_STEPS):
            there = await self._get(attempt, session) if attempt.looks else None
            if there is None:
                if attempt.delivery.after:
                    return Permanent(reason="it was withdrawn, and nothing of it is there")
                await self._intend(attempt)
                try:
                    if (published := await self._send(attempt, session)) is not None:
                        return published
                    there = await self._get(attempt, session)
                except PdsUnreachable as error:
                    there = await self._landed(attempt, session, error)
            if there is None:
                raise PdsUnreachable(f"the record {attempt.uri} was there and is gone")
            if (outcome := _judged(attempt, there)) is not None:
                return outcome
            attempt.generation += 1
            attempt.rkey, attempt.intended, attempt.looks = self._key(attempt), False, True
        return Permanent(reason=f"{_MAX_STEPS} record keys in a row belong to other posts")

    async def _prepare(self, attempt: _Attempt, session: Session) -> Outcome | None:
        """What is sent where; the outcome, if nothing has to be or may be."""
        if (refusal := self._settle(attempt, session.did)) is not None:
            return refusal
        if (found := await self._adopted(attempt, session)) is not None:
            return found
        await self._freeze(attempt)
        return None

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
        """The post's record if it is there: sent directly, by a queue that was lost, or by another tool."""
        if attempt.delivery.intent:
            return None
        records = await self._list(attempt, session)
        keys = [_key_in(record.uri) for record in records]
        # A record at our key, or one too old to be listed: what it is has to be seen.
        attempt.looks = attempt.rkey in keys or (len(keys) >= MAX_LISTED and attempt.rkey < min(keys))
        url, ours = attempt.post.url, [record for record in records if _is_ours(attempt, record.uri)]
        found = [record for record in ours if links_to(record.value, url)]
        if self._clock.wall() - attempt.post.published_at.timestamp() > ADOPTED_FROM_AGE_S:
            found += [record for record in records if is_about(record.value, url)]
        if not found:
            return None
        record = next((record for record in found if record.uri == attempt.uri), found[0])
        _log.info("post_adopted", job=attempt.delivery.job, uri=record.uri)
        return Published(uri=record.uri, cid=record.cid, found=True)

    async def _freeze(self, attempt: _Attempt) -> None:
        """The records as they will be sent; as they were sent if they may have been."""
        if attempt.delivery.intent:
            attempt.intent, attempt.looks = restore_intent(attempt.delivery.intent), True
            return
        post, site = attempt.post, self._accounts().sites.get(attempt.delivery.site)
        texts = texts_of(post, site.template if site else PLAIN_TEMPLATE)
        handles = [handle for rich in texts for handle in rich.handles]
        deadline = self._deadline(attempt.lease)
        dids = await resolve_mentions(handles, self._identities, self._clock, deadline=deadline)
        langs = site.langs if site else ()
        attempt.intent = freeze(post, texts, dids=dids, langs=langs, created_at=self._clock.wall())
        attempt.looks = attempt.looks or len(texts) > 1

    async def _intend(self, attempt: _Attempt) -> None:
        if attempt.intended:
            return
        intent, (root, *_) = _settled(attempt)
        await attempt.lease.intend(
            intent.stored(), root.cid, root.rkey, did=attempt.did, generation=attempt.generation
        )
        attempt.intended = True

    async def _send(self, attempt: _Attempt, session: Session) -> Published | None:
        """Send the records. None: there is another one at the first one's key."""
        intent, (root, *replies) = _settled(attempt)
        if attempt.lease.expired():
            raise LeaseLost("the lease ended before the record was sent")
        if replies:
            await self._pds.create_records(
                session.pds,
                access=session.access,
                did=attempt.did,
                collection=POST_COLLECTION,
                records=[(record.rkey, record.json_bytes) for record in (root, *replies)],
                deadline=self._deadline(attempt.lease),
            )
            return Published(uri=attempt.uri, cid=root.cid, degraded=intent.degraded)
        try:
            stored = await self._pds.put_record(
                session.pds,
                access=session.access,
                did=attempt.did,
                collection=POST_COLLECTION,
                rkey=root.rkey,
                record=root.json_bytes,
                deadline=self._deadline(attempt.lease),
            )
        except PdsRejected as error:
            if error.code != _SWAP:
                raise
            return None
        if stored.cid != root.cid:
            _log.warning("cid_differs", uri=stored.uri, ours=root.cid, theirs=stored.cid)
        return Published(uri=stored.uri, cid=stored.cid, found=not stored.written, degraded=intent.degraded)

    async def _landed(self, attempt: _Attempt, session: Session, lost: PdsUnreachable) -> Record:
        """What the request did whose answer was lost: its record. Raises `lost` if that cannot be said.

        Asked at once, so that a lost answer costs neither an attempt nor a minute, and its author has no time
        to delete what would then be posted again.
        """
        if not lost.sent or lost.retry_after_s is not None:
            raise lost
        try:
            there = await self._get(attempt, session)
        except PdsError:
            raise lost from None
        if there is None:
            raise lost
        return there

    async def _list(self, attempt: _Attempt, session: Session, before: str = "") -> list[Record]:
        """The account's last 100 records, or those with keys before `before`."""
        return await self._pds.list_records(
            session.pds,
            did=session.did,
            collection=POST_COLLECTION,
            before=before,
            deadline=self._deadline(attempt.lease),
        )

    async def _get(self, attempt: _Attempt, session: Session, part: int = 0) -> Record | None:
        return await self._pds.get_record(
            session.pds,
            did=attempt.did,
            collection=POST_COLLECTION,
            rkey=reply_key(attempt.rkey, part) if part else attempt.rkey,
            deadline=self._deadline(attempt.lease),
        )

    async def _delete(self, attempt: _Attempt, session: Session) -> Outcome:
        """Delete what was published, unless it has become another record since; with its thread."""
        delivery = attempt.delivery
        root = await self._published(attempt, session)
        if attempt.did != session.did or not attempt.rkey:
            return Permanent(reason=f"{attempt.uri} is not a post of {session.did}")
        # Another post, site or tool may have posted what was taken for this post's record.
        ours = _is_ours(attempt, attempt.uri) or attempt.rkey == self._key(attempt)
        if root is not None and not ours:
            reason = f"{root.uri} was not posted by feedproxy for this post, and stays; delete it by hand"
            return Permanent(reason=reason)
        mended = root is not None and delivery.cid not in ("", root.cid)
        if mended or not (root is None or await self._deleted(attempt, session, root)):
            return Permanent(reason=f"{attempt.uri} was changed since it was published, and stays")
        if ours:
            await self._delete_replies(attempt, session)
        return Published(uri=attempt.uri, cid=delivery.cid)

    async def _published(self, attempt: _Attempt, session: Session) -> Record | None:
        """The record that is to go, and settle where that is; a queue may have forgotten it."""
        delivery = attempt.delivery
        attempt.did, attempt.rkey = delivery.did or session.did, delivery.rkey
        attempt.generation = max(delivery.generation, attempt.lease.job.generation)
        if delivery.uri:
            place = delivery.uri.removeprefix("at://")
            attempt.did, _, attempt.rkey = place.partition(f"/{POST_COLLECTION}/")
        if attempt.did != session.did or (delivery.uri and not attempt.rkey):
            return None
        known = bool(attempt.rkey)
        attempt.rkey = attempt.rkey or self._key(attempt)
        root = await self._get(attempt, session)
        if root is None and not known:
            listed = await self._list(attempt, session)
            root = next((record for record in listed if _is_ours(attempt, record.uri)), None)
            attempt.rkey = _key_in(root.uri) if root else attempt.rkey
        return root

    async def _delete_replies(self, attempt: _Attempt, session: Session) -> None:
        """Delete the rest of the thread, of which its author may have deleted some."""
        for reply in await self._replies(attempt, session):
            await self._deleted(attempt, session, reply)

    async def _replies(self, attempt: _Attempt, session: Session) -> list[Record]:
        """The replies of the thread; no post is long enough for a hundred."""
        end = reply_key(attempt.rkey, MAX_LISTED)
        listed = await self._list(attempt, session, before=end)
        if any(_key_in(record.uri) >= end for record in listed):  # to this server, cursors are no keys
            parts = [await self._get(attempt, session, part) for part in range(1, MAX_LISTED)]
            listed = [record for record in parts if record is not None]
        # An author's own replies have keys of their own time.
        return [
            record
            for record in listed
            if attempt.rkey < _key_in(record.uri) < end and _replies_to(record, attempt.uri)
        ]

    async def _deleted(self, attempt: _Attempt, session: Session, record: Record) -> bool:
        """Delete `record` as it was seen; False if it has become another one since."""
        if attempt.lease.expired():
            raise LeaseLost("the lease ended before the record was deleted")
        try:
            await self._pds.delete_record(
                session.pds,
                access=session.access,
                did=session.did,
                collection=POST_COLLECTION,
                rkey=_key_in(record.uri),
                cid=record.cid,
                deadline=self._deadline(attempt.lease),
            )
        except PdsRejected as error:
            if error.code != _SWAP:
                raise
            return False
        return True

    def _deadline(self, lease: Lease) -> float:
        """The steady instant by which a request must be over: none outlives the lease."""
        return min(self._clock.steady() + REQUEST_TIMEOUT_S, lease.ends_at)


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


def _is_ours(attempt: _Attempt, uri: str) -> bool:
    """Whether its key says that it was posted for this post, under whatever date."""
    job = attempt.lease.job
    return is_key_of(_key_in(uri), did=attempt.did, site=job.site, post_id=job.post)


def _key_in(uri: str) -> str:
    return uri.rpartition("/")[2]


def _settled(attempt: _Attempt) -> tuple[Intent, tuple[FrozenRecord, ...]]:
    """What is to be sent, and its records at the key that the attempt has come to."""
    if attempt.intent is None:
        raise LeaseLost("nothing was frozen")
    return attempt.intent, attempt.intent.at(attempt.did, attempt.rkey)


def _judged(attempt: _Attempt, there: Record) -> Outcome | None:
    """The record at our key is this post, in the same or other words; another post's (None); or neither."""
    intent, (root, *_) = _settled(attempt)
    if there.cid == root.cid:
        return Published(uri=there.uri, cid=there.cid, found=True, degraded=intent.degraded)
    if links_to(there.value, attempt.post.url) or links_to(there.value, intent.url):
        _log.info("post_found_again", job=attempt.delivery.job, uri=there.uri)
        return Published(uri=there.uri, cid=there.cid, found=True)
    if any(True for _ in uris_in(there.value)):
        _log.warning("record_key_taken", job=attempt.delivery.job, uri=there.uri)
        return None
    return Permanent(reason=f"conflict: {attempt.uri} is there, and is not this post")


def _replies_to(record: Record, root_uri: str) -> bool:
    reply = record.value.get("reply")
    root = reply.get("root") if isinstance(reply, Mapping) else None
    return isinstance(root, Mapping) and root.get("uri") == root_uri


def _outcome_of(error: PdsError) -> Outcome:
    reason = str(error)
    match error:
        case PdsBusy():
            _log.info("account_has_to_wait", for_s=error.wait_s, reason=reason)
            return Wait(for_s=error.wait_s, reason="rate_limited")
        case PdsRejected():
            return Permanent(reason=reason)
        case CredentialsRefused():
            return Credentials(reason=reason)
        case PdsUnreachable():
            return Transient(reason=reason, retry_after_s=error.retry_after_s, counts_for_breaker=True)
        case _:
            return Transient(reason=reason, counts_for_breaker=True)

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

Pictures are uploaded first, as the record names them by their CIDs; an upload that no record follows is
forgotten by the PDS. If it has forgotten one of a frozen record, which it says when it refuses that record,
the record goes out without: nothing of the post was there when that was looked at, and whatever may still
arrive of an earlier attempt has the same key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import MAX_LISTED, Pds, Record, host_of
from proxy.bluesky.pins import Login
from proxy.bluesky.session import Session
from proxy.bluesky.sessions import Sessions
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
from proxy.syndication.deletion import delete_post
from proxy.syndication.embedding import BLOB_LIFETIME_S, Embedder, bare_embed
from proxy.syndication.enriching import Enricher
from proxy.syndication.enrichment import Enrichment, enrichment_of
from proxy.syndication.intent import Embed, FrozenRecord, Intent, restore_intent
from proxy.syndication.job import Action, Delivery, Job
from proxy.syndication.mentions import resolve_mentions
from proxy.syndication.post import Post
from proxy.syndication.record import freeze, is_about, links_to, texts_of, uris_in
from proxy.syndication.records import Records, deadline_of
from proxy.syndication.richtext import PLAIN_TEMPLATE
from proxy.syndication.rkey import PostIdentity, key_in, record_uri
from proxy.telemetry import get_logger

# Whatever is about an older post is taken for it, another tool's record too; for a younger one only what has
# a key of its own: there may be several posts on one page, one after the other.
ADOPTED_FROM_AGE_S: Final = 600.0

# For how long pictures may be fetched that are not at hand: another process looked at them.
PICTURES_S: Final = 6.0
# Keys of other posts that one attempt steps over: they collide once in 10⁹.
_MAX_STEPS: Final = 5
# Sessions that one attempt goes through: an expired one, one of an account that moved.
_MAX_SESSIONS: Final = 4
# A person waits for the answer, which may take a login.
_CHECK_S: Final = 30.0

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
    # For how long what the post is published with may be looked for.
    enrich_s: float = PICTURES_S

    @property
    def identity(self) -> PostIdentity:
        return identity_of(self.lease.job, self.post, self.did)

    @property
    def uri(self) -> str:
        return record_uri(self.did, self.rkey)

    def step(self, generation: int) -> None:
        """Go on with the key of `generation`."""
        self.generation, self.rkey = generation, self.identity.key(generation)


class Publisher:
    """Publishes what a worker leases. `accounts` gives the accounts as they are at that moment."""

    def __init__(
        self,
        sessions: Sessions,
        pds: Pds,
        identities: Identities,
        enricher: Enricher,
        accounts: Callable[[], Accounts],
        clock: Clock,
    ) -> None:
        self._enricher = enricher
        self._embedder = Embedder(enricher, clock)
        self._sessions = sessions
        self._pds = pds
        self._identities = identities
        self._accounts = accounts
        self._clock = clock
        self._homes: dict[str, str] = {}

    def home(self, account: str) -> str:
        """The host of the account's PDS as this process last knew it; "" if it never did."""
        return self._homes.get(account, "")

    async def __call__(
        self, delivery: Delivery, post: Post, lease: Lease, *, enrich_s: float = PICTURES_S
    ) -> Outcome:
        """One attempt; see `attempt.Publish`. Must not be canceled while a request is under way.

        `enrich_s`: for how long pictures may be fetched, and of a post that was never queued its page.
        """
        login = login_of(self._accounts(), delivery.account)
        if login is None:
            return Credentials(reason="this process has no password for the account")
        attempt = _Attempt(delivery, post, lease, enrich_s=enrich_s)

        async def carry_out(session: Session) -> Outcome:
            self._homes[delivery.account] = host_of(session.pds)
            records = Records(self._pds, session, lease, self._clock)
            if delivery.action is not Action.DELETE:
                return await self._post(attempt, records)
            generation = max(delivery.generation, lease.job.generation)
            return await delete_post(delivery, identity_of(lease.job, post, session.did), generation, records)

        try:
            return await self._with_session(login, lambda: deadline_of(lease, self._clock), carry_out)
        except PdsError as error:
            return _outcome_of(error)

    async def check(self, account: str) -> Session:
        """A session that the account's PDS takes right now, by a login if there is none.

        Raises PdsError, CredentialsRefused where this process has no password for it, and StoreError.
        """
        login = login_of(self._accounts(), account)
        if login is None:
            raise CredentialsRefused("NoPassword", f"there is no password for {account} here")
        deadline = self._clock.steady() + _CHECK_S

        async def ask(session: Session) -> Session:
            await self._pds.check_session(
                session.pds, did=session.did, access=session.access, deadline=deadline
            )
            return session

        return await self._with_session(login, lambda: deadline, ask)

    async def _with_session(
        self, login: Login, deadline: Callable[[], float], act: Callable[[Session], Awaitable[T]]
    ) -> T:
        """Do `act` with the account's session; with another when the PDS does not take it."""
        session = await self._sessions.session(login, deadline())
        for _ in range(_MAX_SESSIONS):
            try:
                return await act(session)
            except TokenRefused:
                session = await self._sessions.renewed(login, session, deadline())
            except CredentialsRefused:
                moved = await self._sessions.moved(login, session, deadline())
                if moved is None:
                    raise
                session = moved
        raise PdsUnreachable(f"{session.pds} does not take the tokens that it has given")

    async def _post(self, attempt: _Attempt, records: Records) -> Outcome:
        if attempt.intent is None and (early := await self._prepare(attempt, records)) is not None:
            return early
        for _ in range(_MAX_STEPS):
            there = await records.get(attempt.rkey) if attempt.looks else None
            if there is None:
                if attempt.delivery.after:
                    return Permanent(reason="it was withdrawn, and nothing of it is there")
                await self._renew_pictures(attempt, records)
                await self._intend(attempt)
                try:
                    if (published := await self._send(attempt, records)) is not None:
                        return published
                    there = await records.get(attempt.rkey)
                except PdsUnreachable as error:
                    there = await self._landed(attempt, records, error)
                except PdsRejected as error:
                    _strip(attempt, error)
                    continue
            if there is None:
                raise PdsUnreachable(f"the record {attempt.uri} was there and is gone")
            if (outcome := _judged(attempt, there)) is not None:
                return outcome
            attempt.step(attempt.generation + 1)
            attempt.intended, attempt.looks = False, True
        return Permanent(reason=f"{_MAX_STEPS} record keys in a row belong to other posts")

    async def _prepare(self, attempt: _Attempt, records: Records) -> Outcome | None:
        """What is sent where; the outcome, if nothing has to be or may be."""
        delivery, did = attempt.delivery, records.did
        attempt.did = did
        attempt.step(max(delivery.generation, attempt.lease.job.generation))
        if not delivery.intent:
            if (found := await self._adopted(attempt, records)) is None:
                await self._freeze(attempt, records)
            return found
        if delivery.did not in ("", did):
            return Permanent(reason=f"it may have been sent to {delivery.did}, and the account is {did} now")
        # As it was sent, if it was.
        attempt.rkey = delivery.rkey or attempt.rkey
        attempt.intent, attempt.looks = restore_intent(delivery.intent), True
        return None

    async def _adopted(self, attempt: _Attempt, records: Records) -> Published | None:
        """The post's record if it is there: sent directly, by a queue that was lost, or by another tool."""
        listed = await records.last()
        keys = [key_in(record.uri) for record in listed]
        # A record at our key, or one too old to be listed: what it is has to be seen.
        attempt.looks = attempt.rkey in keys or (len(keys) >= MAX_LISTED and attempt.rkey < min(keys))
        url, identity = attempt.post.url, attempt.identity
        found = [record for record in listed if identity.owns(record.uri) and links_to(record.value, url)]
        if self._clock.wall() - attempt.post.published_at.timestamp() > ADOPTED_FROM_AGE_S:
            found += [record for record in listed if is_about(record.value, url)]
        if not found:
            return None
        record = next((record for record in found if record.uri == attempt.uri), found[0])
        _log.info("post_adopted", job=attempt.delivery.job, uri=record.uri)
        return Published(uri=record.uri, cid=record.cid, found=True)

    async def _freeze(self, attempt: _Attempt, records: Records) -> None:
        """The records as they will be sent."""
        # First, as it may take a while: the instant of the post is that of its sending.
        embed = await self._embed(attempt, records)
        post, site = attempt.post, self._accounts().sites.get(attempt.delivery.site)
        texts = texts_of(post, site.template if site else PLAIN_TEMPLATE)
        handles = [handle for rich in texts for handle in rich.handles]
        deadline = deadline_of(attempt.lease, self._clock)
        dids = await resolve_mentions(handles, self._identities, self._clock, deadline=deadline)
        langs = site.langs if site else ()
        frozen = freeze(post, texts, dids=dids, langs=langs, created_at=self._clock.wall())
        attempt.intent = frozen.showing(embed)
        attempt.looks = attempt.looks or len(texts) > 1

    async def _embed(self, attempt: _Attempt, records: Records) -> Embed:
        post, site = attempt.post, self._accounts().sites.get(attempt.delivery.site)
        if site is None:
            return bare_embed(post)
        deadline_at = self._clock.steady() + attempt.enrich_s
        enrichment = _enrichment_of(attempt.lease.job, post)
        if enrichment is None:
            enrichment = await self._enricher.enrich(post, site, deadline_at)
        return await self._embedder.embed(
            post,
            site,
            enrichment,
            records,
            deadline_at=deadline_at,
            patient=attempt.delivery.failures == 0,
        )

    async def _renew_pictures(self, attempt: _Attempt, records: Records) -> None:
        """Upload the pictures of what was frozen again before the PDS forgets them.

        The same bytes give the same record. If they are not to be had any more, it is sent as it is.
        """
        intent, _ = _settled(attempt)
        if not intent.has_pictures or 0 <= self._clock.wall() - intent.uploaded_at < BLOB_LIFETIME_S:
            return
        embed = await self._embed(attempt, records)
        if embed.uploaded_at and set(embed.degraded) <= set(intent.degraded):
            attempt.intent = intent.showing(embed)

    async def _intend(self, attempt: _Attempt) -> None:
        if attempt.intended:
            return
        intent, (root, *_) = _settled(attempt)
        await attempt.lease.intend(
            intent.stored(), root.cid, root.rkey, did=attempt.did, generation=attempt.generation
        )
        attempt.intended = True

    async def _send(self, attempt: _Attempt, records: Records) -> Published | None:
        """Send the records. None: there is another one at the first one's key."""
        intent, (root, *replies) = _settled(attempt)
        if replies:
            await records.create((root, *replies))
            return Published(uri=attempt.uri, cid=root.cid, degraded=intent.degraded)
        stored = await records.put(root)
        if stored is None:
            return None
        if stored.cid != root.cid:
            _log.warning("cid_differs", uri=stored.uri, ours=root.cid, theirs=stored.cid)
        return Published(uri=stored.uri, cid=stored.cid, found=not stored.written, degraded=intent.degraded)

    async def _landed(self, attempt: _Attempt, records: Records, lost: PdsUnreachable) -> Record:
        """What the request did whose answer was lost: its record. Raises `lost` if that cannot be said.

        Asked at once, so that a lost answer costs neither an attempt nor a minute, and its author has no time
        to delete what would then be posted again.
        """
        if not lost.sent or lost.retry_after_s is not None:
            raise lost
        try:
            there = await records.get(attempt.rkey)
        except PdsError:
            raise lost from None
        if there is None:
            raise lost
        return there


def identity_of(job: Job, post: Post, did: str) -> PostIdentity:
    """What the record keys of `post` follow from on the account `did`: the first date that was seen of it."""
    return PostIdentity(
        did=did,
        site=job.site,
        post_id=job.post,
        published_at_ms=job.first_published_at_ms or post.published_at_ms,
    )


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


def _enrichment_of(job: Job, post: Post) -> Enrichment | None:
    """What an earlier step of the chain has found out; None if there was none."""
    if not job.enrich:
        return None
    found = Enrichment.from_json(job.enrichment) if job.enrichment else None
    return found or enrichment_of(post, degraded=(f"the page: {job.unenriched or 'nothing is known of it'}",))


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


def _strip(attempt: _Attempt, refused: PdsRejected) -> None:
    """Go on without pictures if what was refused had some. Raises `refused` if it had none.

    A refusal says that nothing was written, so that what was frozen may change.
    """
    intent, _ = _settled(attempt)
    if not intent.has_pictures:
        raise refused
    _log.warning("pictures_refused", job=attempt.delivery.job, reason=str(refused))
    embed = bare_embed(attempt.post, intent.records[0].get("embed"), f"the pictures were refused: {refused}")
    attempt.intent, attempt.intended = intent.showing(embed), False


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

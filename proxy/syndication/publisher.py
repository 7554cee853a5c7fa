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
from typing import Final, TypeVar

from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import MAX_LISTED, Pds, Record, host_of
from proxy.bluesky.pins import Login
from proxy.bluesky.session import Session
from proxy.bluesky.sessions import Sessions
from proxy.clock import Clock
from proxy.errors import (
    CredentialsRefused,
    PdsBusy,
    PdsError,
    PdsRejected,
    PdsUnreachable,
    TokenRefused,
)
from proxy.resilience.points import Points
from proxy.syndication.accounts import Accounts
from proxy.syndication.attempt import Credentials, Lease, Outcome, Permanent, Published, Transient, Wait
from proxy.syndication.deletion import delete_post
from proxy.syndication.draft import Draft, identity_of
from proxy.syndication.embedding import BLOB_LIFETIME_S, Embedder, bare_embed
from proxy.syndication.enriching import Enricher
from proxy.syndication.enrichment import Enrichment, enrichment_of
from proxy.syndication.intent import Embed, restore_intent
from proxy.syndication.job import Action, Delivery, Job
from proxy.syndication.mentions import resolve_mentions
from proxy.syndication.post import Post
from proxy.syndication.record import freeze, is_about, links_to, texts_of
from proxy.syndication.records import Records, deadline_of
from proxy.syndication.richtext import PLAIN_TEMPLATE
from proxy.syndication.rkey import key_in
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
        draft = Draft(delivery, post, lease, enrich_s)

        async def carry_out(session: Session) -> Outcome:
            self._homes[delivery.account] = host_of(session.pds)
            records = Records(self._pds, session, lease, self._clock)
            if delivery.action is not Action.DELETE:
                return await self._post(draft, records)
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

        async def ask(session: Session, deadline: float) -> Session:
            await self._pds.check_session(
                session.pds, did=session.did, access=session.access, deadline=deadline
            )
            return session

        return await self._asked(account, ask)

    async def points(self, account: str) -> Points | None:
        """What the account may still write, None if its PDS does not tell. Raises as `check`."""

        async def ask(session: Session, deadline: float) -> Points | None:
            return await self._pds.points(
                session.pds, did=session.did, access=session.access, deadline=deadline
            )

        return await self._asked(account, ask)

    async def _asked(self, account: str, ask: Callable[[Session, float], Awaitable[T]]) -> T:
        login = login_of(self._accounts(), account)
        if login is None:
            raise CredentialsRefused("NoPassword", f"there is no password for {account} here")
        deadline = self._clock.steady() + _CHECK_S
        return await self._with_session(login, lambda: deadline, lambda session: ask(session, deadline))

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

    async def _post(self, draft: Draft, records: Records) -> Outcome:
        if draft.intent is None and (early := await self._prepare(draft, records)) is not None:
            return early
        for _ in range(_MAX_STEPS):
            there = await records.get(draft.rkey) if draft.looks else None
            if there is None:
                if draft.delivery.after:
                    return Permanent(reason="it was withdrawn, and nothing of it is there")
                await self._renew_pictures(draft, records)
                await self._intend(draft)
                try:
                    if (published := await self._send(draft, records)) is not None:
                        return published
                    there = await records.get(draft.rkey)
                except PdsUnreachable as error:
                    there = await self._landed(draft, records, error)
                except PdsRejected as error:
                    draft.strip(error)
                    continue
            if there is None:
                raise PdsUnreachable(f"the record {draft.uri} was there and is gone")
            if (outcome := draft.judge(there)) is not None:
                return outcome
            draft.step(draft.generation + 1)
            draft.intended, draft.looks = False, True
        return Permanent(reason=f"{_MAX_STEPS} record keys in a row belong to other posts")

    async def _prepare(self, draft: Draft, records: Records) -> Outcome | None:
        """What is sent where; the outcome, if nothing has to be or may be."""
        delivery, did = draft.delivery, records.did
        draft.did = did
        draft.step(max(delivery.generation, draft.lease.job.generation))
        if not delivery.intent:
            if (found := await self._adopted(draft, records)) is None:
                await self._freeze(draft, records)
            return found
        if delivery.did not in ("", did):
            return Permanent(reason=f"it may have been sent to {delivery.did}, and the account is {did} now")
        # As it was sent, if it was.
        draft.rkey = delivery.rkey or draft.rkey
        draft.intent, draft.looks = restore_intent(delivery.intent), True
        return None

    async def _adopted(self, draft: Draft, records: Records) -> Published | None:
        """The post's record if it is there: sent directly, by a queue that was lost, or by another tool."""
        listed = await records.last()
        keys = [key_in(record.uri) for record in listed]
        # A record at our key, or one too old to be listed: what it is has to be seen.
        draft.looks = draft.rkey in keys or (len(keys) >= MAX_LISTED and draft.rkey < min(keys))
        url, identity = draft.post.url, draft.identity
        found = [record for record in listed if identity.owns(record.uri) and links_to(record.value, url)]
        if self._clock.wall() - draft.post.published_at.timestamp() > ADOPTED_FROM_AGE_S:
            found += [record for record in listed if is_about(record.value, url)]
        if not found:
            return None
        record = next((record for record in found if record.uri == draft.uri), found[0])
        _log.info("post_adopted", job=draft.delivery.job, uri=record.uri)
        return Published(uri=record.uri, cid=record.cid, found=True)

    async def _freeze(self, draft: Draft, records: Records) -> None:
        """The records as they will be sent."""
        # First, as it may take a while: the instant of the post is that of its sending.
        embed = await self._embed(draft, records)
        post, site = draft.post, self._accounts().sites.get(draft.delivery.site)
        texts = texts_of(post, site.template if site else PLAIN_TEMPLATE)
        handles = [handle for rich in texts for handle in rich.handles]
        deadline = deadline_of(draft.lease, self._clock)
        dids = await resolve_mentions(handles, self._identities, self._clock, deadline=deadline)
        langs = site.langs if site else ()
        frozen = freeze(post, texts, dids=dids, langs=langs, created_at=self._clock.wall())
        draft.intent = frozen.showing(embed)
        draft.looks = draft.looks or len(texts) > 1

    async def _embed(self, draft: Draft, records: Records) -> Embed:
        post, site = draft.post, self._accounts().sites.get(draft.delivery.site)
        if site is None:
            return bare_embed(post)
        deadline_at = self._clock.steady() + draft.enrich_s
        enrichment = _enrichment_of(draft.lease.job, post)
        if enrichment is None:
            enrichment = await self._enricher.enrich(post, site, deadline_at)
        return await self._embedder.embed(
            post,
            site,
            enrichment,
            records,
            deadline_at=deadline_at,
            patient=draft.delivery.failures == 0,
        )

    async def _renew_pictures(self, draft: Draft, records: Records) -> None:
        """Upload the pictures of what was frozen again before the PDS forgets them.

        The same bytes give the same record. If they are not to be had any more, it is sent as it is.
        """
        intent, _ = draft.settled()
        if not intent.has_pictures or 0 <= self._clock.wall() - intent.uploaded_at < BLOB_LIFETIME_S:
            return
        embed = await self._embed(draft, records)
        if embed.uploaded_at and set(embed.degraded) <= set(intent.degraded):
            draft.intent = intent.showing(embed)

    async def _intend(self, draft: Draft) -> None:
        if draft.intended:
            return
        intent, (root, *_) = draft.settled()
        await draft.lease.intend(
            intent.stored(), root.cid, root.rkey, did=draft.did, generation=draft.generation
        )
        draft.intended = True

    async def _send(self, draft: Draft, records: Records) -> Published | None:
        """Send the records. None: there is another one at the first one's key."""
        intent, (root, *replies) = draft.settled()
        if replies:
            await records.create((root, *replies))
            return Published(uri=draft.uri, cid=root.cid, degraded=intent.degraded)
        stored = await records.put(root)
        if stored is None:
            return None
        if stored.cid != root.cid:
            _log.warning("cid_differs", uri=stored.uri, ours=root.cid, theirs=stored.cid)
        return Published(uri=stored.uri, cid=stored.cid, found=not stored.written, degraded=intent.degraded)

    async def _landed(self, draft: Draft, records: Records, lost: PdsUnreachable) -> Record:
        """What the request did whose answer was lost: its record. Raises `lost` if that cannot be said.

        Asked at once, so that a lost answer costs neither an attempt nor a minute, and its author has no time
        to delete what would then be posted again.
        """
        if not lost.sent or lost.retry_after_s is not None:
            raise lost
        try:
            there = await records.get(draft.rkey)
        except PdsError:
            raise lost from None
        if there is None:
            raise lost
        return there


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

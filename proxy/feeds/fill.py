"""One flight: find the answer or who asks for it; ask the upstream, judge its answer, keep it.

Runs in a task that nobody cancels.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from typing import Final

import anyio

from proxy.bluesky.appview import AppView, Reply
from proxy.clock import Clock
from proxy.errors import ShareSpent, StoreError, UpstreamError, UpstreamFailure, UpstreamUnavailable
from proxy.feeds.arrivals import Arrivals
from proxy.feeds.entry import Entry, compressed
from proxy.feeds.failing import FailingKeys
from proxy.feeds.freshness import Freshness
from proxy.feeds.held import Held
from proxy.feeds.key import FeedKey
from proxy.feeds.leases import Found, Leases
from proxy.feeds.memory import MemoryCache
from proxy.feeds.outcome import Alone, Conclude, Failed, Filled, Outcome, Unshared
from proxy.feeds.policy import FeedPolicy
from proxy.feeds.purge import Purges
from proxy.feeds.recent import RecentSet
from proxy.feeds.shared import Lead, LeftAlone, Loaded, SharedCache, Unshareable, Write
from proxy.feeds.storability import conditional, refusal
from proxy.resilience.limiter import Asker, Rank
from proxy.syntax import is_did
from proxy.telemetry import get_logger

# XRPC errors by which the upstream says that what we hold is gone for good.
_GONE: Final = frozenset({"AccountDeactivated", "AccountTakedown", "NotFound"})
_NO_PROFILE: Final = "Profile not found"

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """Where answers are kept, and what is remembered of questions."""

    memory: MemoryCache[Held]
    shared: SharedCache
    failing: FailingKeys
    unshared: RecentSet  # keys whose last answer must not be shared
    cursors: RecentSet  # digests of the cursors that stored answers are known to have handed out


class Filler:
    """Fills the caches from the upstream."""

    def __init__(
        self,
        appview: AppView,
        caches: Caches,
        leases: Leases,
        purges: Purges,
        policy: FeedPolicy,
        clock: Clock,
        arrivals: Arrivals,
    ) -> None:
        self._appview = appview
        self._caches = caches
        self._leases = leases
        self._purges = purges
        self._policy = policy
        self._clock = clock
        self._arrivals = arrivals

    async def warm_up(self) -> None:
        """Do once what the first question would pay for: the connection to level 2, a thread, its codings.

        And a tenth of a second of imports, which the library of httpx does when it is first used.
        """
        anyio.get_cancelled_exc_class()
        key = FeedKey("app.bsky.actor.getProfile", (("actor", "nobody.invalid"),))
        await asyncio.gather(self.load(key), asyncio.to_thread(compressed, b"[" + b"0," * 5000 + b"0]"))

    def sweep(self) -> None:
        """Forget what was purged."""
        self._caches.memory.discard_all(lambda held: self._purges.floor(held.names) > held.as_of)

    async def load(self, key: FeedKey) -> Held | None:
        """What level 2 has for `key`, held in level 1 from now on."""
        try:
            await self._purges.catch_up()
        except StoreError:
            return None
        loaded = await self._caches.shared.load(key)
        return None if loaded is None or self._is_dead(key, loaded) else self._hold_loaded(key, loaded)

    async def fill(self, key: FeedKey, held: Held | None, asker: Asker, *, alone: bool = False) -> Outcome:
        """Find the answer to `key`, or ask the upstream for it unless another process does.

        `held` is the copy we have. `alone` is for answers that must not be shared: ours is asked for anyway.
        """
        deadline = self._clock.steady() + self._policy.timeout_s
        try:
            found, followed = (Lead(""), False) if alone else await self._seek(key, held, asker, deadline)
        except UpstreamError as error:
            return Failed(error.bare())
        match found:
            case Loaded():
                return Filled(
                    self._hold_loaded(key, found), found.entry.status if followed else None, followed=followed
                )
            case LeftAlone(trouble, left_s):
                if left_s > 0:
                    self._caches.failing.hold(key.digest, trouble, left_s)
                return Failed(trouble)
            case Unshareable():
                self._caches.unshared.add(key.digest)
                return Alone()
            case Lead("") if asker.rank is Rank.REFRESH and self._caches.shared.hesitates:
                # Others may be asking; there is a copy, and whoever wants it next tries again.
                return Failed(UpstreamUnavailable("the store hesitates"))
            case Lead():
                return await self._lead(key, held, asker, deadline, _Flight(found, self._purges.known))

    async def _seek(
        self, key: FeedKey, held: Held | None, asker: Asker, deadline: float
    ) -> tuple[Found, bool]:
        """As Leases.seek, for an answer that is better than `held`."""
        known_stamp = held.entry.stamp if held is not None else ""
        try:
            await self._purges.catch_up()
        except StoreError:
            return Lead(""), False
        while True:
            floor = self._purges.floor(
                self._purges.names_of(key, held.entry.dids if held is not None else {})
            )
            found, followed = await self._leases.seek(
                key,
                known_stamp=known_stamp,
                floor=floor,
                rank=asker.rank,
                deadline=deadline,
                # Who would be refused must not keep others waiting.
                may_lead=self._appview.spent_for_s(asker) <= 0,
            )
            if not isinstance(found, Loaded) or self._is_better(key, found, held):
                return found, followed
            known_stamp = found.entry.stamp

    def _is_better(self, key: FeedKey, loaded: Loaded, held: Held | None) -> bool:
        """Whether what level 2 has may be served and, if we hold a copy, was confirmed after it."""
        if self._is_dead(key, loaded):
            return False
        now = self._clock.steady()
        newer = self._held_of(key, loaded)
        if held is None:
            return newer.freshness(now, self._policy.windows) is not Freshness.EXPIRED
        return loaded.age_s >= 0 and newer.ttl_s(now) > 0 and newer.age_s(now) < held.age_s(now)

    def _is_dead(self, key: FeedKey, loaded: Loaded) -> bool:
        return self._purges.floor(self._purges.names_of(key, loaded.entry.dids)) > loaded.as_of

    async def _lead(
        self, key: FeedKey, held: Held | None, asker: Asker, deadline: float, flight: _Flight
    ) -> Outcome:
        try:
            asker = await self._ranked(key, asker)
            reply, under_did = await self._ask(key, held, asker, deadline)
            outcome = await self._settle(key, held, reply, flight, under_did=under_did)
        except UpstreamError as error:
            outcome = Failed(error.bare(), self._failing(key, error.bare(), flight))
        except BaseException:
            self._leases.drop(flight.lead)
            raise
        self._remember(key, outcome)
        return outcome

    async def _ranked(self, key: FeedKey, asker: Asker) -> Asker:
        """`asker`; one of a page that no stored answer leads to, on whichever host, goes after all others."""
        if key.cursor is None:
            return asker
        digest = cursor_digest(key.cursor)
        if digest in self._caches.cursors:
            return asker
        if not await self._caches.shared.has_cursor(digest):
            return replace(asker, rank=Rank.DOUBTFUL)
        self._caches.cursors.add(digest)
        return asker

    async def _ask(
        self, key: FeedKey, held: Held | None, asker: Asker, deadline: float
    ) -> tuple[Reply, bool]:
        """The reply, and whether it speaks of DIDs rather than of handles that may have changed hands."""
        stored = held.entry if held is not None and not held.entry.negative else None
        headers = conditional(_headers(key), stored.upstream_etag if stored else None)
        reply = await self._appview.ask(key.target, headers, asker, deadline)
        handles = {account for account in key.accounts() if not is_did(account)}
        dids = held.entry.dids if held is not None else {}
        if reply.message != _NO_PROFILE or not handles:
            return reply, not handles
        if not handles & dids.keys():
            return reply, False
        _log.info("handle_gone", key=key.target[:200])
        reply = await self._appview.ask(key.with_dids(dids).target, headers, asker, deadline)
        return reply, handles <= dids.keys()

    async def _settle(
        self, key: FeedKey, held: Held | None, reply: Reply, flight: _Flight, *, under_did: bool
    ) -> Outcome:
        arrived_at = self._clock.steady()
        if reply.status == 304:
            if held is None or held.entry.negative:
                raise UpstreamFailure("the upstream answered 304 to a plain request", upstream_status=304)
            entry = self._arrivals.confirmed(reply, held.entry)
            confirmed = self._held(key, entry, born_at=arrived_at - entry.initial_age_s, as_of=flight.as_of)
            self._hold(key, confirmed)
            write = self._caches.shared.confirm
            return Filled(confirmed, 304, conclude=self._keeping(write, key, confirmed, arrived_at, flight))
        if reply.status >= 400 and _keeps_its_copy(held) and not _is_gone(reply, under_did=under_did):
            raise UpstreamFailure(f"the upstream answered {reply.error}", upstream_status=reply.status)
        entry = await self._arrivals.entry(key, reply, held.entry if held is not None else None)
        fresh = self._held(key, entry, born_at=arrived_at - entry.initial_age_s, as_of=flight.as_of)
        reason = refusal(_headers(key), reply.headers)
        if reason is not None:
            return Unshared(fresh, reason, self._unshareable(key, flight))
        self._hold(key, fresh)
        unchanged = held is not None and entry.bodies is held.entry.bodies
        write = self._caches.shared.confirm if unchanged else self._caches.shared.store
        return Filled(fresh, reply.status, conclude=self._keeping(write, key, fresh, arrived_at, flight))

    def _held(
        self, key: FeedKey, entry: Entry, *, born_at: float, as_of: int, from_future: bool = False
    ) -> Held:
        life = self._policy.lifetime_of(
            key,
            negative=entry.negative,
            dids=entry.dids,
            initial_age_s=entry.initial_age_s,
            cost_s=entry.cost_s,
            early_draw=entry.early_draw,
        )
        return Held(entry, life, born_at, self._purges.names_of(key, entry.dids), as_of, from_future)

    def _held_of(self, key: FeedKey, loaded: Loaded) -> Held:
        born_at = self._clock.steady() - max(0.0, loaded.age_s)
        return self._held(
            key, loaded.entry, born_at=born_at, as_of=loaded.as_of, from_future=loaded.age_s < 0
        )

    def _hold_loaded(self, key: FeedKey, loaded: Loaded) -> Held:
        held = self._held_of(key, loaded)
        self._hold(key, held)
        return held

    def _hold(self, key: FeedKey, held: Held) -> None:
        """Take an answer into level 1, if it was neither purged nor overtaken while it was under way."""
        self._purges.learn(held.entry.dids)
        if self._purges.floor(held.names) > held.as_of:
            return
        there = self._caches.memory.peek(key.digest)
        if there is not None and there.as_of >= held.as_of and there.asked_at > held.asked_at:
            return
        self._caches.memory.put(key.digest, held, held.entry.size_bytes)
        if held.entry.cursor is not None:
            self._caches.cursors.add(cursor_digest(held.entry.cursor))

    def _keeping(
        self, write: Write, key: FeedKey, held: Held, arrived_at: float, flight: _Flight
    ) -> Conclude:
        entry = held.entry
        keep_s = self._policy.keep_s(held.life, entry.initial_age_s, negative=entry.negative)

        async def conclude() -> None:
            self._leases.drop(flight.lead)
            await write(key, entry, flight.lead, as_of=held.as_of, arrived_at=arrived_at, keep_s=keep_s)
            if entry.cursor is not None:
                await self._caches.shared.keep_cursor(cursor_digest(entry.cursor), keep_s)

        return conclude

    def _unshareable(self, key: FeedKey, flight: _Flight) -> Conclude:
        async def conclude() -> None:
            self._leases.drop(flight.lead)
            await self._caches.shared.mark_unshareable(key, flight.lead)

        return conclude

    def _failing(self, key: FeedKey, error: UpstreamError, flight: _Flight) -> Conclude:
        async def conclude() -> None:
            self._leases.drop(flight.lead)
            if not _is_of_the_question(error):
                # What one client may not do, its followers may.
                told = None if isinstance(error, ShareSpent) else error
                await self._caches.shared.release(key, flight.lead, told)
                return
            left_s = await self._caches.shared.fail(key, flight.lead, error)
            if left_s is not None:
                self._caches.failing.hold(key.digest, error, left_s)

        return conclude

    def _remember(self, key: FeedKey, outcome: Outcome) -> None:
        match outcome:
            case Failed(error):
                if _is_of_the_question(error):
                    self._caches.failing.note(key.digest, error)
            case Unshared(_, reason):
                if key.digest not in self._caches.unshared:
                    _log.warning("answer_not_storable", key=key.target[:200], reason=reason)
                self._caches.unshared.add(key.digest)
                self._caches.failing.clear(key.digest)
            case Filled():
                self._caches.failing.clear(key.digest)
            case Alone():
                pass


@dataclass(frozen=True, slots=True)
class _Flight:
    """Under whose lead we ask, and the last purge that was known when we began."""

    lead: Lead
    as_of: int


def _is_of_the_question(error: UpstreamError) -> bool:
    """Whether the upstream failed to answer. That our own gate was closed says nothing of the question."""
    return not isinstance(error, UpstreamUnavailable) or error.upstream_status is not None


def cursor_digest(cursor: str) -> str:
    """A short name for a cursor, which may be long."""
    return hashlib.blake2b(cursor.encode(), digest_size=12).hexdigest()


def _headers(key: FeedKey) -> dict[str, str]:
    """What is sent upstream besides the target: nothing of the client's but what is in the key."""
    headers = {"accept": "application/json", "accept-encoding": "gzip"}
    if key.labelers is not None:
        headers["atproto-accept-labelers"] = key.labelers
    if key.language is not None:
        headers["accept-language"] = key.language
    return headers


def _keeps_its_copy(held: Held | None) -> bool:
    return held is not None and not held.entry.negative


def _is_gone(reply: Reply, *, under_did: bool) -> bool:
    return reply.error in _GONE or (reply.message == _NO_PROFILE and under_did)

"""One flight: ask the upstream, judge its answer, keep it. Runs in a task that nobody cancels."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from proxy.bluesky.appview import AppView, Reply
from proxy.clock import Clock
from proxy.errors import UpstreamError, UpstreamFailure, UpstreamUnavailable
from proxy.feeds.entry import Entry, compressed, dids_in
from proxy.feeds.failing import FailingKeys
from proxy.feeds.freshness import initial_age
from proxy.feeds.held import Held
from proxy.feeds.key import FeedKey
from proxy.feeds.memory import MemoryCache
from proxy.feeds.policy import FeedPolicy
from proxy.feeds.recent import RecentSet
from proxy.feeds.shared import SharedCache, Write
from proxy.feeds.storability import conditional, merged, refusal
from proxy.resilience.limiter import Rank
from proxy.syntax import is_did
from proxy.telemetry import get_logger

# XRPC errors by which the upstream says that what we hold is gone for good.
_GONE: Final = frozenset({"AccountDeactivated", "AccountTakedown", "NotFound"})
_NO_PROFILE: Final = "Profile not found"

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Filled:
    """There is an answer, and it is held. `status` is the upstream's, None if a sibling had asked it.

    `keep` puts it into level 2 as well; whoever waits for the answer need not wait for that.
    """

    held: Held
    status: int | None
    keep: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Unshared:
    """There is an answer for one asker only: `reason` forbids to store or share it."""

    held: Held
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no answer to give in place of a stored one."""

    error: UpstreamError


Outcome = Filled | Unshared | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """Where answers are kept, and what is remembered of questions."""

    memory: MemoryCache[Held]
    shared: SharedCache
    failing: FailingKeys
    unshared: RecentSet  # keys whose last answer must not be shared
    cursors: RecentSet  # digests of the cursors that stored answers have handed out


class Filler:
    """Fills the caches from the upstream."""

    def __init__(
        self,
        appview: AppView,
        caches: Caches,
        policy: FeedPolicy,
        clock: Clock,
        *,
        draw: random.Random,
    ) -> None:
        self._appview = appview
        self._caches = caches
        self._policy = policy
        self._clock = clock
        self._draw = draw

    async def warm_up(self) -> None:
        """Do once what the first question would pay for: the connection to level 2, a thread, its codings."""
        key = FeedKey("app.bsky.actor.getProfile", (("actor", "nobody.invalid"),))
        await asyncio.gather(
            self._caches.shared.load(key), asyncio.to_thread(compressed, b"[" + b"0," * 5000 + b"0]")
        )

    async def load(self, key: FeedKey) -> Held | None:
        """What level 2 has for `key`, held in level 1 from now on."""
        loaded = await self._caches.shared.load(key)
        if loaded is None:
            return None
        born_at = self._clock.steady() - max(0.0, loaded.age_s)
        return self._hold(key, loaded.entry, born_at=born_at, from_future=loaded.age_s < 0)

    async def fill(self, key: FeedKey, held: Held | None, rank: Rank) -> Outcome:
        """Ask the upstream for `key`, unless a sibling has just done so. `held` is the copy we have."""
        if held is not None:
            newer = await self._newer(key, held)
            if newer is not None:
                return Filled(newer, None)
        deadline = self._clock.steady() + self._policy.timeout_s
        try:
            reply, under_did = await self._ask(key, held, rank, deadline)
            outcome = await self._settle(key, held, reply, under_did=under_did)
        except UpstreamError as error:
            outcome = Failed(error.bare())
        self._remember(key, outcome)
        return outcome

    async def _newer(self, key: FeedKey, held: Held) -> Held | None:
        """What level 2 has, if it was confirmed after what we hold."""
        loaded = await self._caches.shared.load(key)
        if loaded is None or loaded.age_s < 0 or loaded.entry.stamp == held.entry.stamp:
            return None
        now = self._clock.steady()
        newer = self._held(key, loaded.entry, born_at=now - loaded.age_s)
        if newer.ttl_s(now) <= 0 or newer.age_s(now) >= held.age_s(now):
            return None
        return self._hold(key, loaded.entry, born_at=now - loaded.age_s)

    async def _ask(self, key: FeedKey, held: Held | None, rank: Rank, deadline: float) -> tuple[Reply, bool]:
        """The reply, and whether it speaks of DIDs rather than of handles that may have changed hands."""
        stored = held.entry if held is not None and not held.entry.negative else None
        headers = conditional(_headers(key), stored.upstream_etag if stored else None)
        reply = await self._appview.ask(key.target, headers, rank, deadline)
        handles = {account for account in key.accounts() if not is_did(account)}
        dids = held.entry.dids if held is not None else {}
        if reply.message != _NO_PROFILE or not handles:
            return reply, not handles
        if not handles & dids.keys():
            return reply, False
        _log.info("handle_gone", key=key.target[:200])
        reply = await self._appview.ask(key.with_dids(dids).target, headers, rank, deadline)
        return reply, handles <= dids.keys()

    async def _settle(self, key: FeedKey, held: Held | None, reply: Reply, *, under_did: bool) -> Outcome:
        arrived_at = self._clock.steady()
        if reply.status == 304:
            if held is None or held.entry.negative:
                raise UpstreamFailure("the upstream answered 304 to a plain request", upstream_status=304)
            confirmed = self._confirmed(key, held.entry, reply, arrived_at)
            return Filled(
                confirmed, 304, self._keeping(self._caches.shared.confirm, key, confirmed, arrived_at)
            )
        if reply.status >= 400 and _keeps_its_copy(held) and not _is_gone(reply, under_did=under_did):
            raise UpstreamFailure(f"the upstream answered {reply.error}", upstream_status=reply.status)
        entry = await self._entry(key, reply, held.entry.dids if held is not None else {})
        reason = refusal(_headers(key), reply.headers)
        if reason is not None:
            return Unshared(self._held(key, entry, born_at=arrived_at - entry.initial_age_s), reason)
        fresh = self._hold(key, entry, born_at=arrived_at - entry.initial_age_s)
        return Filled(fresh, reply.status, self._keeping(self._caches.shared.store, key, fresh, arrived_at))

    def _confirmed(self, key: FeedKey, stored: Entry, reply: Reply, arrived_at: float) -> Held:
        kept = {"etag": stored.upstream_etag, "atproto-content-labelers": stored.labelers}
        headers = merged({name: value for name, value in kept.items() if value is not None}, reply.headers)
        entry = replace(
            stored,
            stamp=self._stamp(),
            upstream_etag=_plain(headers.get("etag")),
            labelers=_plain(headers.get("atproto-content-labelers")),
            initial_age_s=initial_age(reply.headers.get("age"), reply.took_s),
            cost_s=reply.took_s,
            early_draw=self._draw.expovariate(1.0),
        )
        return self._hold(key, entry, born_at=arrived_at - entry.initial_age_s)

    async def _entry(self, key: FeedKey, reply: Reply, known_dids: Mapping[str, str]) -> Entry:
        document = reply.document or {}
        cursor = document.get("cursor")
        (bodies, body_hash), dids = await asyncio.gather(
            asyncio.to_thread(compressed, reply.body), asyncio.to_thread(_dids, key, document)
        )
        return Entry(
            key_id=key.id,
            stamp=self._stamp(),
            status=reply.status,
            content_type=_plain(reply.headers.get("content-type")) or "application/json",
            bodies=bodies,
            body_hash=body_hash,
            upstream_etag=_plain(reply.headers.get("etag")),
            labelers=_plain(reply.headers.get("atproto-content-labelers")),
            initial_age_s=initial_age(reply.headers.get("age"), reply.took_s),
            cost_s=reply.took_s,
            early_draw=self._draw.expovariate(1.0),
            dids={**known_dids, **dids},
            cursor=cursor if isinstance(cursor, str) else None,
        )

    def _stamp(self) -> str:
        return f"{self._draw.getrandbits(64):016x}"

    def _held(self, key: FeedKey, entry: Entry, *, born_at: float, from_future: bool = False) -> Held:
        life = self._policy.lifetime_of(
            key,
            negative=entry.negative,
            dids=entry.dids,
            initial_age_s=entry.initial_age_s,
            cost_s=entry.cost_s,
            early_draw=entry.early_draw,
        )
        return Held(entry, life, born_at, from_future)

    def _hold(self, key: FeedKey, entry: Entry, *, born_at: float, from_future: bool = False) -> Held:
        held = self._held(key, entry, born_at=born_at, from_future=from_future)
        self._caches.memory.put(key.digest, held, entry.size_bytes)
        if entry.cursor is not None:
            self._caches.cursors.add(cursor_digest(entry.cursor))
        return held

    def _keeping(
        self, write: Write, key: FeedKey, held: Held, arrived_at: float
    ) -> Callable[[], Awaitable[None]]:
        entry = held.entry
        keep_s = self._policy.keep_s(held.life, entry.initial_age_s, negative=entry.negative)
        return lambda: write(key, entry, arrived_at=arrived_at, keep_s=keep_s)

    def _remember(self, key: FeedKey, outcome: Outcome) -> None:
        match outcome:
            case Failed(error):
                # That our own gate was closed says nothing of this question.
                if not isinstance(error, UpstreamUnavailable) or error.upstream_status is not None:
                    self._caches.failing.note(key.digest, error)
            case Unshared(_, reason):
                if key.digest not in self._caches.unshared:
                    _log.warning("answer_not_storable", key=key.target[:200], reason=reason)
                self._caches.unshared.add(key.digest)
                self._caches.failing.clear(key.digest)
            case Filled():
                self._caches.failing.clear(key.digest)


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


def _plain(value: str | None) -> str | None:
    """A header value that may be passed on: printable ASCII, or nothing."""
    return value if value is not None and value.isascii() and value.isprintable() else None


def _keeps_its_copy(held: Held | None) -> bool:
    return held is not None and not held.entry.negative


def _is_gone(reply: Reply, *, under_did: bool) -> bool:
    return reply.error in _GONE or (reply.message == _NO_PROFILE and under_did)


def _dids(key: FeedKey, document: Mapping[str, object]) -> dict[str, str]:
    accounts = frozenset(key.accounts())
    did = document.get("did")
    if key.nsid == "com.atproto.identity.resolveHandle" and isinstance(did, str):
        return dict.fromkeys(accounts, did)
    return dids_in(document, accounts)

"""The walk of a request: look up -> decide -> collapse -> forward -> store."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.bluesky.appview import AppView
from proxy.clients import NOBODY, Client
from proxy.clock import Clock
from proxy.errors import ShareSpent, UpstreamError, UpstreamFailure, UpstreamTimeout, UpstreamUnavailable
from proxy.feeds.answer import Answer, Fwd, Served, answered, failed, stale
from proxy.feeds.changes import Changes
from proxy.feeds.fill import Caches, Filler
from proxy.feeds.flight import Flight, Flights, Landed
from proxy.feeds.freshness import Freshness
from proxy.feeds.held import Held
from proxy.feeds.key import FeedKey
from proxy.feeds.outcome import Alone, Failed, Filled, Outcome
from proxy.feeds.policy import FeedPolicy
from proxy.feeds.popular import Popular
from proxy.resilience.limiter import Asker, Rank
from proxy.tally import Tally

# How long a client waits for a refresh of a copy that is older than STALE_WHILE_REVALIDATE.
OLD_PATIENCE_S: Final = 2.0
# A flight ends by its own deadline; this is for what follows it and for a loop under load.
_WAIT_MARGIN_S: Final = 1.0
MAX_REFRESHES: Final = 500
_LOADING_POLL_S: Final = 0.1
# What a new process takes from level 2 before anyone asks: so many answers, in so much of its memory, and so
# many at a time, that readers are not kept waiting.
PREFETCHED: Final = 200
_PREFETCH_SHARE: Final = 0.25
_PREFETCHING: Final = 4
_REFRESHER: Final = Asker(Rank.REFRESH)  # nobody pays for a refresh


class FeedService:
    """Answers questions from the caches, and sees to it that the caches are filled."""

    def __init__(
        self,
        filler: Filler,
        appview: AppView,
        caches: Caches,
        policy: FeedPolicy,
        clock: Clock,
        changes: Changes,
        popular: Popular,
        tally: Tally,
        *,
        warming: Callable[[], bool],
    ) -> None:
        self._filler = filler
        self._appview = appview
        self._caches = caches
        self._policy = policy
        self._clock = clock
        self._changes = changes
        self._popular = popular
        self._tally = tally
        self._warming = warming  # whether level 2 may be about to answer
        max_age_s = policy.timeout_s + _WAIT_MARGIN_S
        self._loads: Flights[_Found] = Flights(clock, max_age_s=max_age_s, crashed=lambda _: _Found(None))
        self._fills: Flights[Outcome] = Flights(clock, max_age_s=max_age_s, crashed=_crashed, after=_conclude)
        self._numbers = itertools.count()
        self._refreshes = 0
        self._given_up = False

    @property
    def flights(self) -> int:
        """How many questions are under way."""
        return len(self._fills)

    @property
    def followers(self) -> int:
        """How many requests wait for them."""
        return self._fills.waiting

    def at_once(self, key: FeedKey) -> Answer | None:
        """The answer to `key`, if memory has one to serve as it is; a refresh is started if one is due."""
        held = self._caches.memory.get(key.digest)
        return None if held is None else self._as_held(key, held)

    def joinable(self, key: FeedKey) -> Flight[Outcome] | None:
        """The flight under way that decides what whoever misses `key` now is told; None if there is none."""
        return self._fills.joinable(key.digest) if self._is_plain_miss(key) else None

    def start(self, key: FeedKey, client: Client) -> Flight[Outcome] | None:
        """Such a flight, started now for `client`.

        None if more than a flight decides, nobody may wait, or `client` would be refused.
        """
        asker = _asker(client)
        if not self._is_plain_miss(key) or self._fills.full or self._appview.spent_for_s(asker) > 0:
            return None
        return self._join(key, None, asker)[0]

    def call_when_landed(self, flight: Flight[Outcome], landed: Landed) -> Callable[[], None]:
        """Have `landed` called when it is time to ask for `landed_answer`; the result calls that off."""
        self._fills.call_when_landed(flight, landed)
        return functools.partial(self._fills.call_off, flight, landed)

    def landed_answer(self, key: FeedKey, flight: Flight[Outcome], *, started: bool) -> Answer | None:
        """What those are told who have `started` or joined `flight` for `key`; None if each asks anew."""
        match flight.outcome:
            case None:
                return failed(UpstreamTimeout("the upstream did not answer in time"), collapsed=not started)
            case Filled(held, None):
                return self._as_held(key, held)
            case Failed(error) if self._warming() or (isinstance(error, ShareSpent) and not started):
                return None
            case outcome:
                return answered(outcome, started=started, fwd="uri-miss", fallback=None)

    async def answer(self, key: FeedKey, client: Client = NOBODY) -> Answer:
        """The answer to `key`, for `client`. Raises nothing: trouble is told in the answer."""
        held = self._caches.memory.get(key.digest)
        if held is None or self._freshness(held) is Freshness.EXPIRED:
            found = await self._find(key, client)
            if isinstance(found, Answer):
                return found
            held = found
        if held is not None and (answer := self._as_held(key, held)) is not None:
            return answer
        state = Freshness.EXPIRED if held is None else self._freshness(held)
        if key.digest in self._caches.unshared:
            return await self._answer_alone(key, held, state, client)
        if held is None or state is Freshness.EXPIRED:
            return await self._miss(key, held, client)
        return await self._refreshed(key, held, client)

    def _as_held(self, key: FeedKey, held: Held) -> Answer | None:
        """The answer that `held` is, unless it is too old or not for everyone."""
        state = self._freshness(held)
        self._popular.count(key)
        if state is Freshness.FRESH:
            return Answer(served=Served.HIT, held=held)
        if state not in (Freshness.EARLY, Freshness.STALE) or key.digest in self._caches.unshared:
            return None
        served = Served.HIT if state is Freshness.EARLY else Served.STALE_WHILE_REVALIDATE
        trouble = self._trouble(key)
        if trouble is None:
            self._refresh(key, held)
        elif state is Freshness.STALE:
            return stale(held, trouble)
        return Answer(served=served, held=held)

    async def warm_up(self) -> None:
        """Get ready for the first questions; nothing comes of it if level 2 is not there yet."""
        await self._filler.warm_up()
        wanted = iter(await self._popular.most(PREFETCHED))
        memory = self._caches.memory

        async def prefetch() -> None:
            for key in wanted:
                if memory.size_bytes >= memory.max_bytes * _PREFETCH_SHARE:
                    return
                await self._load(key)

        await asyncio.gather(*(prefetch() for _ in range(_PREFETCHING)))

    async def refresh(self, key: FeedKey) -> None:
        """Have `key` asked for in the background, however fresh the copy is."""
        held = self._caches.memory.peek(key.digest) or await self._load(key)
        usable = held is not None and self._freshness(held) is not Freshness.EXPIRED
        self._refresh(key, held if usable else None)

    def sweep(self) -> None:
        """Something was purged: forget what is dead, and answer newcomers with nothing that began before."""
        self._filler.sweep()
        self._fills.detach()

    def give_up(self) -> None:
        """Answer everyone who still waits with what there is: this process is about to end."""
        self._given_up = True
        self._loads.give_up()
        self._fills.give_up()

    async def close(self, grace_s: float) -> None:
        """Let what is under way land for `grace_s` seconds."""
        await self._loads.drain(grace_s)
        await self._fills.drain(grace_s)

    def _freshness(self, held: Held) -> Freshness:
        state = held.freshness(self._clock.steady(), self._policy.windows)
        return Freshness.EARLY if state is Freshness.FRESH and self._changes.concern(held) else state

    async def _find(self, key: FeedKey, client: Client) -> Answer | Held | None:
        """What level 2 has; if it has nothing, the answer of the upstream, which is asked in the same breath.

        None if the upstream is not to be asked for this key as for others.
        """
        if not self._is_ordinary(key):
            return await self._load(key)
        deadline, warming = self._clock.steady() + self._policy.timeout_s, self._warming()
        outcome, started = await self._fly(key, None, client)
        if isinstance(outcome, Filled) and outcome.status is None:
            return outcome.held
        answer = await self._told(key, outcome, client, started=started, fwd="uri-miss", fallback=None)
        return await self._unless_loaded(key, answer, deadline, was_warming=warming)

    def _is_plain_miss(self, key: FeedKey) -> bool:
        """Whether there is nothing to answer `key` with, and nothing to heed but what a flight brings."""
        held = self._caches.memory.peek(key.digest)
        expired = held is None or self._freshness(held) is Freshness.EXPIRED
        return expired and self._is_ordinary(key) and not self._warming()

    def _is_ordinary(self, key: FeedKey) -> bool:
        """Whether a miss of `key` is asked for, once for all."""
        caches = self._caches
        return key.digest not in caches.unshared and caches.failing.current(key.digest) is None

    async def _load(self, key: FeedKey) -> Held | None:
        """What level 2 has; many who ask at once cause one look-up."""

        async def look_up() -> _Found:
            return _Found(await self._filler.load(key))

        flight, _ = self._loads.join(key.digest, look_up)
        try:
            return (await self._loads.wait(flight, self._policy.timeout_s)).held
        except UpstreamError:
            return None

    def _trouble(self, key: FeedKey) -> UpstreamError | None:
        """Why the upstream is not to be asked for `key` now."""
        failing = self._caches.failing.current(key.digest)
        if failing is not None:
            return failing.error
        closed_for_s = self._appview.closed_for_s()
        if closed_for_s > 0:
            return UpstreamUnavailable("the upstream is left alone", retry_after_s=closed_for_s)
        return None

    def _refresh(self, key: FeedKey, held: Held | None) -> None:
        """One refresh in the background. The place is taken before anything is awaited."""
        if self._refreshes >= MAX_REFRESHES:
            return
        flight, started = self._join(key, held, _REFRESHER)
        if started and flight.task is not None:
            self._refreshes += 1
            flight.task.add_done_callback(self._refresh_done)

    def _refresh_done(self, _task: object) -> None:
        self._refreshes -= 1

    async def _refreshed(self, key: FeedKey, held: Held, client: Client) -> Answer:
        """A copy that is old: a refresh if it comes soon, else the copy."""
        trouble = self._trouble(key)
        if trouble is not None:
            return stale(held, trouble)
        flight, started = self._join(key, held, _REFRESHER)
        outcome = await self._wait(flight, OLD_PATIENCE_S)
        if isinstance(outcome, Failed):
            return stale(held, outcome.error)
        return await self._told(key, outcome, client, started=started, fwd="stale", fallback=held)

    async def _miss(self, key: FeedKey, held: Held | None, client: Client) -> Answer:
        """Nothing to serve: the upstream decides. `held` is a negative answer that has expired, if any."""
        deadline, warming = self._clock.steady() + self._policy.timeout_s, self._warming()
        failing = self._caches.failing.current(key.digest)
        if failing is not None:
            left_s = failing.until - self._clock.steady()
            answer = failed(failing.error, retry_after_s=left_s, detail="failing")
            return await self._unless_loaded(key, answer, deadline, was_warming=warming)
        gone = held if held is not None and held.entry.negative else None
        outcome, started = await self._fly(key, gone, client)
        answer = await self._told(key, outcome, client, started=started, fwd="uri-miss", fallback=None)
        return await self._unless_loaded(key, answer, deadline, was_warming=warming)

    async def _unless_loaded(
        self, key: FeedKey, answer: Answer, deadline: float, *, was_warming: bool
    ) -> Answer:
        """`answer`, unless it is an error and a store that was loading has a copy before `deadline`."""
        unasked = answer.error is not None and (was_warming or self._warming())
        while unasked and not self._given_up and self._clock.steady() < deadline:
            unasked = self._warming()  # it may have loaded since it was asked: then this is the last look
            held = await self._load(key)
            if held is not None and self._freshness(held) is not Freshness.EXPIRED and answer.error:
                return stale(held, answer.error)
            if unasked:
                await asyncio.sleep(_LOADING_POLL_S)
        return answer

    async def _told(
        self,
        key: FeedKey,
        outcome: Outcome,
        client: Client,
        *,
        started: bool,
        fwd: Fwd,
        fallback: Held | None,
    ) -> Answer:
        answer = answered(outcome, started=started, fwd=fwd, fallback=fallback)
        if answer is not None:
            return answer
        state = Freshness.EXPIRED if fallback is None else self._freshness(fallback)
        return await self._answer_alone(key, fallback, state, client)

    async def _answer_alone(
        self, key: FeedKey, held: Held | None, state: Freshness, client: Client
    ) -> Answer:
        """A question whose answers must not be shared: each asker has a flight of its own."""
        copy = held if state is not Freshness.EXPIRED else None
        trouble = self._trouble(key)
        if trouble is not None:
            return failed(trouble) if copy is None else stale(copy, trouble)

        async def fly() -> Outcome:
            return await self._filler.fill(key, copy, _asker(client), alone=True)

        self._tally.add("feedproxy_flights_started")
        flight, _ = self._fills.join(f"{key.digest}#{next(self._numbers)}", fly)
        outcome = await self._wait(flight, self._policy.timeout_s + _WAIT_MARGIN_S)
        fwd: Fwd = "uri-miss" if copy is None else "stale"
        return await self._told(key, outcome, client, started=True, fwd=fwd, fallback=copy)

    async def _fly(self, key: FeedKey, held: Held | None, client: Client) -> tuple[Outcome, bool]:
        """What a flight for `key` brings, and whether `client` has started it."""
        latest = self._clock.steady() + self._policy.timeout_s + _WAIT_MARGIN_S
        while True:
            flight, started = self._join(key, held, _asker(client))
            outcome = await self._wait(flight, max(0.0, latest - self._clock.steady()))
            refused = isinstance(outcome, Failed) and isinstance(outcome.error, ShareSpent)
            if not refused or started or flight.key != key.digest:
                return outcome, started

    def _join(self, key: FeedKey, held: Held | None, asker: Asker) -> tuple[Flight[Outcome], bool]:
        name = key.digest
        if self._fills.joinable(name) is None and self._appview.spent_for_s(asker) > 0:
            # This one will be refused: whoever would not be must not have to wait for that.
            name = f"{name}@{asker.client}"
        flight, started = self._fills.join(name, lambda: self._filler.fill(key, held, asker))
        if started:
            self._tally.add("feedproxy_flights_started")
        return flight, started

    async def _wait(self, flight: Flight[Outcome], timeout_s: float) -> Outcome:
        try:
            return await self._fills.wait(flight, timeout_s)
        except UpstreamError as error:
            return Failed(error.bare())


@dataclass(frozen=True, slots=True)
class _Found:
    held: Held | None


def _asker(client: Client) -> Asker:
    return Asker(Rank.MISS, client.name, pays=not client.exempt)


async def _conclude(outcome: Outcome) -> None:
    if not isinstance(outcome, Alone) and outcome.conclude is not None:
        await outcome.conclude()


def _crashed(error: Exception) -> Outcome:
    return Failed(UpstreamFailure(f"the answer could not be processed ({type(error).__name__})"))

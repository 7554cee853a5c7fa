"""Plain questions that wait for a flight without a task of their own.

A front page brings hundreds of them at once. They are called when it has landed, and share one reply.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from proxy.clock import Clock
from proxy.feeds.answer import Answer
from proxy.feeds.counting import ReadTally
from proxy.feeds.flight import Flight
from proxy.feeds.key import FeedKey
from proxy.feeds.outcome import Outcome
from proxy.feeds.reply import Replies, Reply, Terms
from proxy.feeds.service import FeedService
from proxy.short_cut import Deliver


@dataclass(slots=True)
class _Told:
    """What those who joined a flight are told: replies by their terms and its age in whole seconds.

    `uncounted` is how long each waited who is not counted yet.
    """

    answer: Answer
    replies: dict[tuple[Terms, int], Reply] = field(default_factory=dict)
    uncounted: list[float] = field(default_factory=list)


class Passengers:
    """Brings questions onto flights, and replies from them."""

    def __init__(self, service: FeedService, replies: Replies, reads: ReadTally, clock: Clock) -> None:
        self._service = service
        self._replies = replies
        self._reads = reads
        self._clock = clock
        self._told: WeakKeyDictionary[Flight[Outcome], _Told] = WeakKeyDictionary()
        # When who has left had asked, and whether that started the flight.
        self._left: WeakKeyDictionary[Flight[Outcome], list[tuple[float, bool]]] = WeakKeyDictionary()

    def board(
        self,
        key: FeedKey,
        terms: Terms,
        *,
        start: Callable[[], Flight[Outcome] | None],
        anew: Callable[[], Coroutine[Any, Any, Reply]],
        deliver: Deliver,
    ) -> Callable[[], None] | None:
        """Have the reply to `key` on these `terms` delivered; the result, if any, is for who leaves before.

        `start` starts a flight unless one is under way, or more than a flight decides. Then, and if what it
        brings is not for everyone, the reply is found by what `anew` makes.
        """
        asked_at = self._clock.steady()
        flight = self._service.joinable(key)
        started = flight is None
        flight = flight or start()
        if flight is None:
            deliver(anew())
            return None

        def landed() -> None:
            try:
                told = self._landed(key, flight, started=started)
                found = anew() if told is None else self._reply(told, key, terms)
            except Exception:  # noqa: BLE001  (a bug must not leave those behind waiting: a task tells of it)
                told, found = None, anew()
            deliver(found)
            if told is not None:
                self._count_later(key, told, self._clock.steady() - asked_at)

        call_off = self._service.call_when_landed(flight, landed)

        def leave() -> None:
            call_off()
            self._count_when_landed(key, flight, asked_at, started=started)

        return leave

    def _landed(self, key: FeedKey, flight: Flight[Outcome], *, started: bool) -> _Told | None:
        if started:
            answer = self._service.landed_answer(key, flight, started=True)
            return None if answer is None else _Told(answer)
        told = self._told.get(flight)
        if told is None:
            answer = self._service.landed_answer(key, flight, started=False)
            if answer is None:
                return None
            told = self._told[flight] = _Told(answer)
        return told

    def _reply(self, told: _Told, key: FeedKey, terms: Terms) -> Reply:
        held = told.answer.held
        age_s = 0 if held is None else math.floor(held.age_s(self._clock.steady()))
        reply = told.replies.get((terms, age_s))
        if reply is None:
            reply = told.replies[terms, age_s] = self._replies.reply(told.answer, key.nsid, terms)
        return reply

    def _count_when_landed(
        self, key: FeedKey, flight: Flight[Outcome], asked_at: float, *, started: bool
    ) -> None:
        """Count one who has left, as what it would have been told."""
        left = self._left.get(flight)
        if left is None:
            left = self._left[flight] = []
            self._service.call_when_landed(flight, functools.partial(self._count_left, key, flight, left))
        left.append((asked_at, started))

    def _count_left(self, key: FeedKey, flight: Flight[Outcome], left: list[tuple[float, bool]]) -> None:
        for asked_at, started in left:
            told = self._landed(key, flight, started=started)
            if told is not None:
                self._reads.answered(key.nsid, told.answer, self._clock.steady() - asked_at)

    def _count_later(self, key: FeedKey, told: _Told, took_s: float) -> None:
        """Count one more once all who are called now have been told."""
        if not told.uncounted:
            asyncio.get_running_loop().call_soon(self._count, key, told)
        told.uncounted.append(took_s)

    def _count(self, key: FeedKey, told: _Told) -> None:
        for took_s in told.uncounted:
            self._reads.answered(key.nsid, told.answer, took_s)
        told.uncounted.clear()

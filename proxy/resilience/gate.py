"""The gate before the read upstream: nobody calls it but through here.

It joins the rate limit, the concurrency bound, the breaker and the "not before" that the upstream asked for.
`Gate` is what callers see; `LocalGate` keeps its state in this process, `FleetGate` in the store.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.errors import BudgetSpent, UpstreamUnavailable
from proxy.resilience.breaker import Admission, Breaker, BreakerPolicy, Phase, Ticket
from proxy.resilience.limiter import Asker, Bucket, Rank, Rate, ahead_of, next_rank
from proxy.resilience.shares import Shares, share_spent

# A client waits this long for an instant the upstream named; beyond it, it is told when to come back.
PATIENCE_S = 1.0
# Of so many clients is known in which round they had a turn.
_MAX_BOOKED: Final = 10_000


@dataclass(slots=True)
class Pass:
    """Leave to make one forward, retries included; say `alive` before handing it back."""

    ticket: Ticket
    alive: bool | None = None  # None: nothing was learned of the upstream


class Gate(Protocol):
    """What decides whether and when the upstream is asked."""

    def closed_for_s(self) -> float:
        """Seconds for which every call would be refused at once; 0 when calls may go through."""

    def spent_for_s(self, asker: Asker) -> float:
        """Seconds for which the client of `asker` is known to have spent its share; 0 if it may have some."""

    def forward(self) -> AbstractAsyncContextManager[Pass]:
        """Leave for one forward, from the breaker. Raises UpstreamUnavailable while it is open."""

    def attempt(self, leave: Pass, asker: Asker, deadline: float) -> AbstractAsyncContextManager[None]:
        """A turn for one request of a forward, which must come while half of the time to `deadline` is left.

        `deadline` is a steady instant. Raises ShareSpent when the client that pays has caused too many
        requests lately, BudgetSpent when no turn comes in time, both with the time to come back: a
        request sent in the last moment would time out, and its upstream be blamed for it.
        """

    def hold_off(self, wait_s: float) -> None:
        """The upstream wants nobody to call for `wait_s` seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """The limits a gate keeps. `client_per_min`: of requests in any minute that one client pays for."""

    rate: Rate
    concurrency: int
    client_per_min: int
    breaker: BreakerPolicy


_Turn = asyncio.Future[None]


@dataclass(frozen=True, slots=True, order=True)
class _Waiter:
    """One who waits for `turn`, in its order among those of its rank."""

    round: int
    number: int
    turn: _Turn = field(compare=False)


@dataclass(slots=True)
class _Queues:
    """Who waits for a turn, by rank: first come first, in rounds in each of which every client has one turn.

    Refreshes are nobody's, and all in one round. Those who gave up are done and count no more.
    """

    by_rank: dict[Rank, list[_Waiter]] = field(default_factory=lambda: {rank: [] for rank in Rank})
    last: Rank = Rank.MISS
    _rounds: Counter[Rank] = field(default_factory=Counter)  # of who went last
    _booked: Counter[tuple[Rank, str]] = field(default_factory=Counter)  # the last round of each client
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def counts(self) -> dict[Rank, int]:
        for queue in self.by_rank.values():
            queue[:] = [waiter for waiter in queue if not waiter.turn.done()]
        return {rank: len(queue) for rank, queue in self.by_rank.items()}

    def place(self, asker: Asker) -> int:
        """How many of its rank go before `asker`, should it wait."""
        return bisect.bisect_left(self.by_rank[asker.rank], self._next_round(asker) + 1, key=_round_of)

    def add(self, asker: Asker, turn: _Turn) -> None:
        waiter = _Waiter(self._next_round(asker), next(self._numbers), turn)
        if len(self._booked) >= _MAX_BOOKED:
            self._booked.clear()
        self._booked[asker.rank, asker.client] = waiter.round
        bisect.insort(self.by_rank[asker.rank], waiter)

    def pop(self, rank: Rank) -> _Turn:
        self.last = rank
        waiter = self.by_rank[rank].pop(0)
        self._rounds[rank] = waiter.round
        if not any(self.by_rank.values()):
            self._booked.clear()
        return waiter.turn

    def remove(self, rank: Rank, turn: _Turn) -> None:
        self.by_rank[rank][:] = [waiter for waiter in self.by_rank[rank] if waiter.turn is not turn]

    def _next_round(self, asker: Asker) -> int:
        if asker.rank is Rank.REFRESH:
            return 0
        return max(self._rounds[asker.rank], self._booked[asker.rank, asker.client]) + 1


def _round_of(waiter: _Waiter) -> int:
    return waiter.round


class LocalGate:
    """A gate whose state lives in this process."""

    def __init__(self, policy: GatePolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._bucket = Bucket(float(policy.rate.burst), clock.steady())
        self._breaker = Breaker()
        self._not_before = 0.0
        self._running = 0
        self._queues = _Queues()
        self._shares = Shares(policy.client_per_min)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def phase(self) -> Phase:
        """Where the breaker stands."""
        return self._breaker.phase

    @property
    def limit_per_s(self) -> float:
        """How many requests a second may be made."""
        return self._policy.rate.per_s

    def closed_for_s(self) -> float:
        """See Gate."""
        now = self._clock.steady()
        return max(self._breaker.closed_for_s(now), self._not_before - now, 0.0)

    def spent_for_s(self, asker: Asker) -> float:
        """See Gate."""
        return self._shares.spent_for_s(asker.client, self._clock.steady()) if asker.pays else 0.0

    def hold_off(self, wait_s: float) -> None:
        """See Gate."""
        self._not_before = max(self._not_before, self._clock.steady() + wait_s)
        if self._not_before - self._clock.steady() > PATIENCE_S:
            self._refuse_waiting(self._told_to_wait)

    @asynccontextmanager
    async def forward(self) -> AsyncIterator[Pass]:
        """See Gate."""
        now, policy = self._clock.steady(), self._policy.breaker
        self._breaker, ticket = self._breaker.admit(now, policy)
        if ticket.admission is Admission.REFUSE:
            raise self._left_alone()
        leave = Pass(ticket)
        try:
            yield leave
        finally:
            now = self._clock.steady()
            if leave.alive is None:
                self._breaker = self._breaker.abandon(ticket, now)
            else:
                self._breaker = self._breaker.record(ticket, now, policy, alive=leave.alive)
            if self._breaker.phase is Phase.OPEN:
                self._refuse_waiting(self._left_alone)

    @asynccontextmanager
    async def attempt(self, _leave: Pass, asker: Asker, deadline: float) -> AsyncIterator[None]:
        """See Gate."""
        spent_s = self.spent_for_s(asker)
        if spent_s > 0:
            raise share_spent(spent_s)
        paid_at = self._clock.steady()
        if asker.pays:
            self._shares.take(asker.client, paid_at)
        try:
            await self._wait_for_turn(asker, deadline)
        except BaseException:
            if asker.pays:
                self._shares.give_back(asker.client, paid_at)
            raise
        try:
            yield
        finally:
            self._leave()

    async def _wait_for_turn(self, asker: Asker, deadline: float) -> None:
        now = self._clock.steady()
        latest = now + (deadline - now) / 2
        self._refuse_hopeless(asker, latest)
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._queues.add(asker, turn)
        self._let_in()
        try:
            async with asyncio.timeout(max(0.0, latest - now)):
                await turn
        except TimeoutError:
            # The turn may have come in the very instant in which the time was up.
            if not _was_given(turn):
                raise self._budget_spent(asker) from None
        except asyncio.CancelledError:
            if _was_given(turn):
                self._leave()
            raise
        finally:
            self._queues.remove(asker.rank, turn)

    def _leave(self) -> None:
        self._running -= 1
        self._let_in()

    def _refuse_hopeless(self, asker: Asker, latest: float) -> None:
        now = self._clock.steady()
        held_s = self._not_before - now
        if held_s > PATIENCE_S or now + held_s > latest:
            raise self._told_to_wait()
        if now + self._wait_s(asker) > latest:
            raise self._budget_spent(asker)

    def _refuse_waiting(self, reason: Callable[[], UpstreamUnavailable]) -> None:
        """Nobody's turn will come: tell all who wait for one."""
        for queue in self._queues.by_rank.values():
            for waiter in queue:
                if not waiter.turn.done():
                    waiter.turn.set_exception(reason())
            queue.clear()

    def _left_alone(self) -> UpstreamUnavailable:
        return UpstreamUnavailable(
            "the upstream has been failing and is left alone for a while",
            retry_after_s=self._breaker.closed_for_s(self._clock.steady()),
        )

    def _told_to_wait(self) -> UpstreamUnavailable:
        return UpstreamUnavailable(
            "the upstream asked everyone to wait",
            retry_after_s=self._not_before - self._clock.steady(),
        )

    def _budget_spent(self, asker: Asker) -> BudgetSpent:
        return BudgetSpent(
            "the budget of upstream requests is spent", retry_after_s=max(1.0, self._wait_s(asker))
        )

    def _wait_s(self, asker: Asker) -> float:
        """Seconds until the turn of `asker`, should it wait, if nobody else comes."""
        counts = self._queues.counts()
        ahead = ahead_of(asker.rank, counts, self._queues.last, self._queues.place(asker))
        return self._bucket.wait_s(self._policy.rate, self._clock.steady(), ahead)

    def _let_in(self) -> None:
        """Give turns to those who wait, as far as bound, budget and "not before" allow."""
        now = self._clock.steady()
        while self._running < self._policy.concurrency and now >= self._not_before:
            rank = next_rank(self._queues.counts(), self._queues.last)
            if rank is None:
                return
            self._bucket, taken = self._bucket.take(self._policy.rate, now)
            if not taken:
                break
            self._running += 1
            self._queues.pop(rank).set_result(None)
        self._wake_later(now)

    def _wake_later(self, now: float) -> None:
        """Look again when the next token or the end of the "not before" is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running < self._policy.concurrency and any(self._queues.counts().values()):
            due_s = max(self._bucket.wait_s(self._policy.rate, now), self._not_before - now, 0.001)
            self._timer = asyncio.get_running_loop().call_later(due_s, self._let_in)


def _was_given(turn: _Turn) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None

"""The gate that all processes of a fleet share: its state is in the store, where scripts decide by its clock.

Who wants a turn is told when to ask again, by how many go before it: so waiting costs few round trips, and
whoever comes meanwhile with a better rank goes first. Each process remembers what it was told last, and has a
gate of its own for as long as the store is away, or refuses to keep the fleet's.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from proxy.clock import Clock
from proxy.errors import BudgetSpent, ShareSpent, StoreError, StoreRefused, UpstreamUnavailable
from proxy.resilience.breaker import Admission, Breaker, Phase, Ticket
from proxy.resilience.gate import PATIENCE_S, GatePolicy, LocalGate, Pass
from proxy.resilience.limiter import Asker
from proxy.resilience.shares import Spenders, share_spent
from proxy.store.link import Link, Run
from proxy.store.news import News
from proxy.store.scripts import Script, script
from proxy.telemetry import get_logger

_ENTER: Final = script("gate_enter", libraries=("gate",))
_LEAVE: Final = script("gate_leave", libraries=("gate",))
_HOLD: Final = script("gate_hold", libraries=("gate",))
_ADMIT: Final = script("gate_admit", libraries=("gate",))
_RECORD: Final = script("gate_record", libraries=("gate",))
_BEAT: Final = script("gate_beat", libraries=("gate",))

_PARTS: Final = ("gate", "slots", "refreshes", "misses", "doubtful", "due", "rounds")
# A process silent for so long makes no calls any more. It says so with each beat of the link.
SLOT_S: Final = 2.0
# Who does not ask again so long after its time has left.
GRACE_S: Final = 0.5

_log = get_logger()


class FleetGate:
    """See Gate. `alone` is this process's own, for when the store is away."""

    def __init__(
        self, link: Link, news: News, policy: GatePolicy, alone: LocalGate, clock: Clock, *, prefix: str
    ) -> None:
        self._link = link
        self._channel = news.channel
        self._policy = policy
        self._alone = alone
        self._clock = clock
        self._prefix = prefix
        self._keys = [f"{prefix}{part}" for part in _PARTS]
        longest_s = max(policy.breaker.cooldown_s, policy.breaker.probe_s)
        self._longest_us = _us(longest_s)
        self._breaker = Breaker()
        self._not_before = 0.0
        self._spenders = Spenders()
        self._refused = False  # whether the store said no when it was last asked for a turn, or told of some
        self._calling: set[str] = set()
        self._unasked = 0  # turns had alone that the fleet has not been told of
        self._waiting: dict[str, asyncio.Event] = {}
        news.subscribe("turn", self._heard_turn)
        news.subscribe("gate", self._heard_gate)

    @property
    def phase(self) -> Phase:
        """Where the breaker stands, as far as this process knows."""
        return self._breaker.phase if self._in_charge else self._alone.phase

    @property
    def limit_per_s(self) -> float:
        """How many requests a second all processes may make; without the store, this one."""
        return self._policy.rate.per_s if self._in_charge else self._alone.limit_per_s

    @property
    def _in_charge(self) -> bool:
        """Whether the store decides, as far as this process knows."""
        return self._link.in_step and not self._refused

    def closed_for_s(self) -> float:
        """See Gate."""
        if not self._in_charge:
            return self._alone.closed_for_s()
        now = self._clock.steady()
        return max(self._breaker.closed_for_s(now), self._not_before - now, 0.0)

    def spent_for_s(self, asker: Asker) -> float:
        """See Gate."""
        if not self._in_charge:
            return self._alone.spent_for_s(asker)
        return self._spenders.left_s(asker.client, self._clock.steady()) if asker.pays else 0.0

    def hold_off(self, wait_s: float) -> None:
        """See Gate."""
        self._alone.hold_off(wait_s)
        self._not_before = max(self._not_before, self._clock.steady() + wait_s)
        self._tell(_HOLD, [_us(wait_s), self._channel])

    @asynccontextmanager
    async def forward(self) -> AsyncIterator[Pass]:
        """See Gate."""
        try:
            ticket = await self._admitted()
        except StoreError:
            async with self._alone.forward() as leave:
                yield leave
            return
        leave = Pass(ticket)
        try:
            yield leave
        finally:
            await self._record(leave)

    @asynccontextmanager
    async def attempt(self, leave: Pass, asker: Asker, deadline: float) -> AsyncIterator[None]:
        """See Gate."""
        turn = await self._turn(leave, asker, deadline)
        if turn is None:
            async with self._alone.attempt(leave, asker, deadline):
                self._unasked += 1
                yield
            return
        self._calling.add(turn)
        try:
            yield
        finally:
            self._calling.discard(turn)
            self._leave(turn)

    async def beat(self, run: Run) -> None:
        """Say who is calling, and hear how the gate stands. Raises StoreError."""
        unasked = self._unasked
        args = [self._longest_us, *self._beating(unasked, *self._calling)]
        self._mirror(await self._unless_refused(run(_BEAT, self._keys, args)))
        self._unasked -= unasked

    def _beating(self, unasked: int, *calling: str) -> list[Any]:
        return [_us(SLOT_S), self._policy.rate.burst, unasked, *calling]

    async def _admitted(self) -> Ticket:
        """Raises UpstreamUnavailable while the breaker is open, StoreError."""
        if self._refused:
            raise StoreRefused("the store keeps no gate")
        if self._breaker.phase is Phase.CLOSED and self._link.in_step:
            return Ticket(Admission.PASS)
        if self._link.in_step and self._breaker.closed_for_s(self._clock.steady()) > 0:
            raise self._left_alone()
        [said] = await self._run(_ADMIT, [_us(self._policy.breaker.probe_s)])
        if said == b"refuse":
            raise self._left_alone()
        if said == b"probe":
            return Ticket(Admission.PROBE, self._breaker.probe)
        return Ticket(Admission.PASS)

    async def _record(self, leave: Pass) -> None:
        """Tell the breaker what it does not know. It is waited for: the next call must find it told."""
        is_probe = leave.ticket.admission is Admission.PROBE
        if leave.alive is False or is_probe or (leave.alive and self._breaker.failures > 0):
            alive = "" if leave.alive is None else str(int(leave.alive))
            breaker = self._policy.breaker
            args = [leave.ticket.probe, alive, breaker.threshold, _us(breaker.cooldown_s), self._channel]
            with contextlib.suppress(StoreError):
                await self._run(_RECORD, args)

    async def _turn(self, leave: Pass, asker: Asker, deadline: float) -> str | None:
        """A turn, waited for; None if the store is away. Raises ShareSpent, UpstreamUnavailable."""
        spent_s = self.spent_for_s(asker)
        if spent_s > 0:
            raise share_spent(spent_s)
        now = self._clock.steady()
        latest = now + (deadline - now) / 2
        turn = uuid.uuid4().hex
        called = self._waiting[turn] = asyncio.Event()
        place = b""  # kept for one who is late to ask again
        try:
            while True:
                called.clear()
                what, *more = await self._enter(turn, leave, asker, latest, place)
                if what == b"go":
                    return turn
                if what == b"share":
                    raise self._share_spent(asker, int(more[0]) / 1e6)
                if what != b"wait":
                    raise self._refusal(what, more)
                with contextlib.suppress(TimeoutError):
                    wait_us, place = more
                    async with asyncio.timeout(int(wait_us) / 1e6):
                        await called.wait()
        except StoreError:
            return None
        except asyncio.CancelledError:
            self._leave(turn)
            raise
        finally:
            del self._waiting[turn]

    async def _enter(
        self, turn: str, leave: Pass, asker: Asker, latest: float, place: bytes
    ) -> Sequence[Any]:
        async def late(_answer: Any) -> None:
            self._leave(turn)

        rate = self._policy.rate
        is_probe = leave.ticket.admission is Admission.PROBE
        args = [
            *(turn, int(asker.rank), asker.client, _us(max(0.0, latest - self._clock.steady()))),
            *("1" if is_probe else "0", rate.per_s, rate.burst, self._policy.concurrency),
            *(_us(SLOT_S), _us(PATIENCE_S), _us(GRACE_S), self._channel, place),
            self._policy.client_per_min if asker.pays else 0,
        ]
        keys = [*self._keys, f"{self._prefix}spent:{asker.client}"]
        entering = self._link.run(_ENTER, keys, [self._longest_us, *args], late=late)
        return self._mirror(await self._unless_refused(entering))

    async def _unless_refused(self, asked: Awaitable[Sequence[Any]]) -> Sequence[Any]:
        try:
            answer = await asked
        except StoreRefused:
            self._refused = True
            raise
        self._refused = False
        return answer

    def _share_spent(self, asker: Asker, wait_s: float) -> ShareSpent:
        self._spenders.note(asker.client, self._clock.steady() + wait_s)
        return share_spent(wait_s)

    def _refusal(self, what: Any, more: Sequence[Any]) -> UpstreamUnavailable:
        if what == b"breaker":
            return self._left_alone()
        if what == b"told":
            return UpstreamUnavailable(
                "the upstream asked everyone to wait",
                retry_after_s=self._not_before - self._clock.steady(),
            )
        return BudgetSpent(
            "the budget of upstream requests is spent", retry_after_s=max(1.0, int(more[0]) / 1e6)
        )

    def _left_alone(self) -> UpstreamUnavailable:
        return UpstreamUnavailable(
            "the upstream has been failing and is left alone for a while",
            retry_after_s=self._breaker.closed_for_s(self._clock.steady()),
        )

    def _leave(self, turn: str) -> None:
        self._tell(_LEAVE, [turn, self._policy.concurrency, self._channel])

    def _tell(self, what: Script, args: Sequence[Any]) -> None:
        """Tell the store, for which nobody waits."""

        async def tell() -> None:
            await self._run(what, args)

        self._link.in_background(tell(), f"gate {what.name}")

    async def _run(self, what: Script, args: Sequence[Any]) -> Sequence[Any]:
        return self._mirror(await self._link.run(what, self._keys, [self._longest_us, *args]))

    def _mirror(self, answer: Sequence[Any]) -> Sequence[Any]:
        """Remember how the gate stands; what the answer says besides."""
        phase, failures, refuse_us, probe, held_us, *more = answer
        now = self._clock.steady()
        self._breaker = Breaker(
            phase=Phase(phase.decode()),
            failures=int(failures),
            refuse_until=now + int(refuse_us) / 1e6,
            probe=int(probe),
        )
        self._not_before = now + int(held_us) / 1e6
        return more

    def _heard_turn(self, text: str | None) -> None:
        if text is not None and text in self._waiting:
            self._waiting[text].set()

    def _heard_gate(self, _text: str | None) -> None:
        """The breaker or the "not before" changed: see what that means for those who wait."""
        for called in self._waiting.values():
            called.set()
        self._tell(_BEAT, self._beating(0))


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

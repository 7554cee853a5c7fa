"""The fleet's common memory as readers may use it: they wait for it for a moment, never for long.

A store that hesitates is left alone at once, and found again by a beat that no reader waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from proxy.errors import StoreError, StoreRefused, StoreUnavailable
from proxy.store.calls import put
from proxy.store.connection import Store
from proxy.store.scripts import Script
from proxy.telemetry import get_logger

# For how long the store may answer nobody while somebody waits.
PATIENCE_S: Final = 0.06
# It is counted in turns of the event loop: a stall of our own takes up few, and is not blamed on the store.
_TURNS: Final = 16
# So many are asked at a time; those who wait for their turn are told at once when the store is away.
_CALLS: Final = 128
BEAT_S: Final = 0.3
_ALONE_BEAT_S: Final = 0.1
# A store that is back sooner was busy; what nobody waits for can wait until then.
HESITATION_S: Final = 2.0

_log = get_logger()

Run = Callable[[Script, Sequence[str], Sequence[Any]], Awaitable[Any]]


class Link:
    """A store for those who have no time. `in_step` says whether it is asked at all."""

    def __init__(self, store: Store, *, patience_s: float = PATIENCE_S) -> None:
        self._store = store
        self._turn_s = patience_s / _TURNS
        self._turns = asyncio.Semaphore(_CALLS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slipped = asyncio.Event()
        self._waiting: set[asyncio.Future[Any]] = set()  # for an answer
        self._watch: asyncio.TimerHandle | None = None
        self._answers = 0
        self.in_step = True
        self._was_warming = False  # when it was last found out of step
        self._slipped_at = 0.0  # on the clock of the loop

    @property
    def hesitates(self) -> bool:
        """Whether the store was in step a moment ago and may be so again in another."""
        return not self.in_step and asyncio.get_running_loop().time() - self._slipped_at < HESITATION_S

    @property
    def warming(self) -> bool:
        """Whether a store that could not be asked so far may be about to answer: see Store.warming."""
        # Its first answer, which may be a late one to anybody, is not yet the end of a beat.
        return self._store.warming or (self._was_warming and not self.in_step)

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        late: Callable[[Any], Awaitable[None]] | None = None,
    ) -> Any:
        """The answer of `script`; one that comes when nobody waits for it any more goes to `late`.

        Raises StoreUnavailable when it does not come in time, StoreRefused when the store says no.
        """
        async with self._turns:
            if not self.in_step:
                raise StoreUnavailable("the store has not been answering")
            return await self._patiently(script, keys, args, late)

    async def keep_in_step(self, *beats: Callable[[Run], Awaitable[None]]) -> None:
        """Beat until cancelled: what must be told or asked again and again; it also finds a lost store."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S if self.in_step else _ALONE_BEAT_S):
                    await self._slipped.wait()
            self._slipped.clear()
            beating = self._own(self._beat(beats), "store beat")
            await asyncio.wait({beating})

    async def aclose(self) -> None:
        """Wait for what is under way; the store ends it soon."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def in_background(self, work: Awaitable[None], name: str) -> None:
        """Do `work`, for which nobody waits; its StoreErrors are nobody's business."""

        async def quietly() -> None:
            with contextlib.suppress(StoreError):
                await work

        self._own(quietly(), name)

    async def _beat(self, beats: Sequence[Callable[[Run], Awaitable[None]]]) -> None:
        try:
            for beat in beats:
                # A store that says no is there, and there is more that it may be told or asked.
                with contextlib.suppress(StoreRefused):
                    await beat(self._at_once)
        except StoreUnavailable:
            self._slip()
            self._was_warming = self._store.warming
        else:
            if not self.in_step:
                _log.info("store_in_step")
            self.in_step = True

    async def _at_once(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await self._patiently(script, keys, args, None)

    async def _patiently(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any],
        late: Callable[[Any], Awaitable[None]] | None,
    ) -> Any:
        before = self._answers
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # A call is never cut off half-way: its answer would be another's.
        try:
            self._store.submit(script, keys, args, functools.partial(self._answered, waiter, late))
            self._waiting.add(waiter)
            if self._watch is None:
                self._look_later(before, 0)
            return await waiter
        except StoreUnavailable:
            if self._answers == before:  # else it was this call's bad luck
                self._slip()
            raise
        finally:
            self._waiting.discard(waiter)
            if not waiter.cancel() and not waiter.cancelled():
                waiter.exception()  # seen, even by one who was cancelled in the same moment

    def _answered(
        self,
        waiter: asyncio.Future[Any],
        late: Callable[[Any], Awaitable[None]] | None,
        answer: Any,
    ) -> None:
        if not isinstance(answer, StoreUnavailable):
            self._answers += 1
        if not waiter.done():
            put(waiter, answer)
        elif late is not None and not isinstance(answer, StoreError):
            self.in_background(late(answer), "store late")

    def _look_later(self, answers: int, turns: int) -> None:
        self._watch = asyncio.get_running_loop().call_later(self._turn_s, self._look, answers, turns)

    def _look(self, answers: int, turns: int) -> None:
        """See whether anybody was answered since there were so many `answers`, so many `turns` ago."""
        self._watch = None
        if not self._waiting:
            return
        turns = turns + 1 if answers == self._answers else 0
        if turns < _TURNS:
            self._look_later(self._answers, turns)
            return
        self._slip()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(StoreUnavailable("the store takes too long"))

    def _slip(self) -> None:
        if self.in_step:
            _log.warning("store_out_of_step")
            self._slipped_at = asyncio.get_running_loop().time()
            self._slipped.set()
            self._was_warming = self._store.warming
        self.in_step = False

    def _own(self, work: Awaitable[Any], name: str) -> asyncio.Task[Any]:
        async def run() -> Any:
            return await work

        task = asyncio.create_task(run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

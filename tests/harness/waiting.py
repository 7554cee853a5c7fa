"""Waiting in tests: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

DEADLINE_S = 60.0  # for what takes moments, on the slowest machine
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02


async def until(condition: Callable[[], Any], *, deadline_s: float = DEADLINE_S, every_s: float = 0) -> Any:
    """The first true value of `condition`, which may be a coroutine function, before the deadline.

    It is asked at once and less and less often, as looking takes from what it waits for; or each `every_s`.
    """
    pauses = _pauses(every_s)
    async with asyncio.timeout(deadline_s):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(next(pauses))


def until_true(
    condition: Callable[[], Any],
    what: str | Callable[[], str],
    *,
    deadline_s: float = DEADLINE_S,
    every_s: float = 0,
    faults: tuple[type[Exception], ...] = (),
) -> Any:
    """The first true value of `condition` before the deadline, without a loop; `faults` make it false.

    Without one it fails with `what`, which is asked only then if it has to be found out.
    """
    give_up_at = time.monotonic() + deadline_s
    pauses = _pauses(every_s)
    while True:
        with contextlib.suppress(*faults):
            if value := condition():
                return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {deadline_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(next(pauses))


def _pauses(every_s: float) -> Iterator[float]:
    pause_s = every_s or _FIRST_PAUSE_S
    while True:
        yield pause_s
        if not every_s:
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

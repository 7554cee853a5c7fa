"""Waiting in tests: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 20.0


async def until(
    condition: Callable[[], Any], *, deadline_s: float = DEADLINE_S, every_s: float = 0.001
) -> Any:
    """The first true value of `condition`, which may be a coroutine function, before the deadline."""
    async with asyncio.timeout(deadline_s):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(every_s)


def until_true(
    condition: Callable[[], Any],
    what: str,
    *,
    deadline_s: float = DEADLINE_S,
    every_s: float = 0.01,
    faults: tuple[type[Exception], ...] = (),
) -> Any:
    """The first true value of `condition` before the deadline, without a loop; `faults` make it false."""
    give_up_at = time.monotonic() + deadline_s
    while time.monotonic() < give_up_at:
        with contextlib.suppress(*faults):
            if value := condition():
                return value
        time.sleep(every_s)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")

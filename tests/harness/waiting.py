"""Waiting in tests: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
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

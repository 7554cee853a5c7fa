"""Work in the background: it has an owner, and one fault in it is not its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from proxy.telemetry import get_logger

_AGAIN_S: Final = 1.0

_log = get_logger()


@contextlib.asynccontextmanager
async def running(**work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do each work, under its name, for as long as the block lasts; what crashes is told and begins anew.

    Must be of the kind that may be cancelled wherever it waits.
    """
    tasks = [asyncio.create_task(_going_on(name, each), name=name) for name, each in work.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _going_on(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001  (a bug, which is told)
            _log.exception("background_work_crashed", work=name)
        else:
            return
        await asyncio.sleep(_AGAIN_S)

"""Whom a text mentions: handles to DIDs, within a bound. No post waits long, nor fails, for a mention."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Final

from proxy.bluesky.identity import Identities
from proxy.clock import Clock
from proxy.errors import PdsError
from proxy.telemetry import get_logger

MENTIONS_TIMEOUT_S: Final = 2.0
# More would be a nuisance to those mentioned, and to the AppView that is asked.
MAX_MENTIONS: Final = 20

_log = get_logger()


async def resolve_mentions(
    handles: Iterable[str], identities: Identities, clock: Clock, *, deadline: float
) -> dict[str, str]:
    """The DIDs of the first 20 of `handles`, as far as they are found within 2 s and by `deadline`."""
    wanted = list(islice(dict.fromkeys(handles), MAX_MENTIONS))
    until = min(deadline, clock.steady() + MENTIONS_TIMEOUT_S)

    async def did_of(handle: str) -> str | None:
        try:
            return await identities.did_of(handle.lower(), service=None, deadline=until)
        except PdsError as error:
            _log.info("mention_not_resolved", handle=handle, reason=str(error))
            return None

    # Nothing here raises, so that nothing is canceled half-way.
    async with asyncio.TaskGroup() as group:
        asked = {handle: group.create_task(did_of(handle), name=f"mention {handle}") for handle in wanted}
    return {handle: did for handle, task in asked.items() if (did := task.result()) is not None}

"""Accounts that have changed, as when a post of theirs was published: copies are looked at again.

The copy stays, fresh as it is, and is served; whoever asks for it also causes a refresh, one for the fleet.
The AppView shows a post seconds after the PDS has it, and a minute after on a bad day: a refresh at once may
find what was there before. So whatever the upstream was asked for before one of a few instants after the
change is asked for again by the first reader after it. Copies that nobody reads cost nothing, and what is
the same costs a 304.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from typing import Final

from proxy.clock import Clock
from proxy.errors import StoreError
from proxy.feeds.held import Held
from proxy.feeds.policy import longest_life_s
from proxy.feeds.purge import CHANGED, PURGE, log_key_of
from proxy.feeds.shared import channel_of
from proxy.settings import Settings
from proxy.store.link import Run
from proxy.telemetry import get_logger

# Seconds after a change: at once, as soon as the AppView usually has it, later, and when it must have it.
LOOKS_S: Final = (0.0, 3.0, 15.0, 60.0)
# Processes do not agree to the millisecond on when a change was.
SLACK_S: Final = 0.25
# Pauses between attempts to tell, in which a store comes back.
_AGAIN_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

_log = get_logger()


class Changes:
    """When accounts last changed, as far as this process knows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed_at: dict[str, float] = {}  # by handle and DID, on the steady clock

    def __contains__(self, name: object) -> bool:
        return name in self._changed_at

    def note(self, name: str, ago_s: float) -> None:
        """The account `name`, a handle or DID, changed so many seconds ago."""
        changed_at = self._clock.steady() - ago_s
        self._changed_at[name] = max(changed_at, self._changed_at.get(name, changed_at))

    def concern(self, held: Held) -> bool:
        """Whether the upstream may know better than `held` by now."""
        if not self._changed_at:
            return False
        changed = [self._changed_at[name] for name in held.names & self._changed_at.keys()]
        return bool(changed) and is_due(held.asked_at, max(changed), self._clock.steady())


def is_due(asked_at: float, changed_at: float, now: float) -> bool:
    """Whether to look again at what was asked for at `asked_at`; all on the steady clock."""
    looks = (changed_at + look_s for look_s in LOOKS_S)
    return any(asked_at < look - SLACK_S and look <= now for look in looks)


class Herald:
    """Tells the fleet of changes. Nobody waits for it; while the store is away it goes on for a minute."""

    def __init__(self, run: Run, *, log_key: str, channel: str, keep_s: float) -> None:
        self._run = run
        self._key = log_key
        self._channel = channel
        self._keep_us = round(keep_s * 1e6)
        self._closing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, names: Collection[str]) -> None:
        """An account that goes by `names` (handle and DID) has changed."""
        task = asyncio.create_task(self._tell(sorted(names)), name="change")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Tell what was not told yet, once more at most."""
        self._closing.set()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _tell(self, names: list[str]) -> None:
        args = [self._channel, 0, self._keep_us, *(f"{CHANGED}{name}" for name in names)]
        for pause_s in (*_AGAIN_S, 0.0):
            last = self._closing.is_set()
            try:
                await self._run(PURGE, [self._key], args)
            except StoreError as error:
                _log.debug("change_not_told", names=names, reason=str(error))
            else:
                return
            if last:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closing.wait()
        _log.warning("change_not_told", names=names)


def herald_of(settings: Settings, run: Run) -> Herald:
    """The herald of a process that runs its scripts by `run`."""
    keep_s = longest_life_s(settings)
    return Herald(run, log_key=log_key_of(settings), channel=channel_of(settings), keep_s=keep_s)

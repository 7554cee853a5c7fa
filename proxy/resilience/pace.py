"""How fast a PDS is asked: a rate for each host, and pauses that it asked an account to make.

`Pace` is what callers see. `LocalPace` keeps its state in this process, `SharedPace` in the store, for the
fleet.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.errors import PdsBusy, StoreError
from proxy.resilience.limiter import Bucket, Rate
from proxy.store.runner import Runner
from proxy.store.scripts import script

# Longer than this nobody waits within an attempt: it is put off instead.
PATIENCE_S: Final = 2.0

# For how long a store that was away is not asked again.
_ALONE_S: Final = 1.0

_PACE = script("pace")
_PAUSE = script("pause")


class Pace(Protocol):
    """What decides when a PDS may be asked."""

    async def take(self, host: str, account: str) -> float:
        """Take a turn at `host` for `account`. 0.0: taken; else seconds after which to ask again."""

    async def pause(self, account: str, wait_s: float) -> None:
        """The account's PDS wants no request on its behalf for `wait_s` seconds."""


async def wait_for_turn(pace: Pace, host: str, account: str, *, clock: Clock, deadline: float) -> None:
    """Wait for a turn until the steady instant `deadline`, but not for long.

    Raises PdsBusy with the time to come back when no turn will come before then.
    """
    patient_until = min(deadline, clock.steady() + PATIENCE_S)
    while (wait_s := await pace.take(host, account)) > 0:
        if clock.steady() + wait_s > patient_until:
            raise PdsBusy(f"{host} is not to be asked yet", wait_s=wait_s)
        await asyncio.sleep(wait_s)


class LocalPace:
    """A pace whose state lives in this process. A host that was not asked before starts without tokens."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._paused_until: dict[str, float] = {}

    async def take(self, host: str, account: str) -> float:
        """See Pace."""
        now = self._clock.steady()
        paused_s = self._paused_until.get(account, now) - now
        if paused_s > 0:
            return paused_s
        bucket = self._buckets.get(host) or Bucket(0.0, now)
        self._buckets[host], taken = bucket.take(self._rate, now)
        return 0.0 if taken else self._buckets[host].wait_s(self._rate, now)

    async def pause(self, account: str, wait_s: float) -> None:
        """See Pace."""
        until = self._clock.steady() + wait_s
        self._paused_until[account] = max(until, self._paused_until.get(account, until))


class SharedPace:
    """A pace that the fleet keeps together; `alone` is this process's own part of it while the store is away.

    Its scripts are no transitions: one that ran although its answer was lost costs a turn, no more.
    """

    def __init__(self, store: Runner, rate: Rate, alone: Pace, clock: Clock, *, prefix: str) -> None:
        self._store = store
        self._rate = rate
        self._alone = alone
        self._clock = clock
        self._prefix = prefix
        self._alone_until = 0.0

    async def take(self, host: str, account: str) -> float:
        """See Pace."""
        # A store that is away takes its time to say so, which a lease has not.
        if self._clock.steady() < self._alone_until:
            return await self._alone.take(host, account)
        args = (host, account, self._rate.per_s, self._rate.burst)
        try:
            wait_us = await self._store.run(_PACE, self._prefix, args)
        except StoreError:
            self._alone_until = self._clock.steady() + _ALONE_S
            return await self._alone.take(host, account)
        return int(wait_us) / 1e6

    async def pause(self, account: str, wait_s: float) -> None:
        """See Pace."""
        await self._alone.pause(account, wait_s)
        try:
            await self._store.run(_PAUSE, self._prefix, (account, round(wait_s * 1e6)))
        except StoreError:
            return  # this process knows, the others will be told themselves

"""The store of the read path: short timeouts, nothing sent twice, errors of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from pydantic import SecretStr
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.clock import Clock
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store import subscription
from proxy.store.calls import AWAY, MOVING, Call, send
from proxy.store.guard import Guard
from proxy.store.scripts import Script
from proxy.store.servers import Servers, servers_of

TIMEOUT_S: Final = 0.5
MAX_TURNS: Final = 32
# An embedded store starts together with the processes that use it.
START_UP_S: Final = 3.0


class Store:
    """Runs scripts in the shared store. None is sent a second time when its answer was lost."""

    def __init__(self, servers: Servers, clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._guard = Guard(clock, "store")
        self._turns = asyncio.Semaphore(MAX_TURNS)
        self._born_at = clock.steady()
        self._loading: bool | None = None  # None: it has not answered yet
        self._refusals: dict[str, str] = {}  # by script, why its last run was refused

    @property
    def reachable(self) -> bool:
        """Whether the last calls went well."""
        return self._guard.closed

    @property
    def warming(self) -> bool:
        """Whether it may be about to answer: it is loading, or has just been started beside this process."""
        if self._loading is None:
            return self._clock.steady() - self._born_at < START_UP_S
        return self._loading

    @property
    def loading(self) -> bool:
        """Whether it said that it is still loading its data."""
        return self._loading is True

    @property
    def refusal(self) -> str | None:
        """Why it refuses what it is asked, None if it does not."""
        return next(iter(self._refusals.values()), None)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The answer of `script`, whose `keys` are all in one slot of a cluster.

        Raises StoreUnavailable when the store cannot be reached, is loading or takes more than half a
        second; StoreRefused when it says no.
        """
        # Those who wait for a connection see at their turn whether it is still worth it.
        async with self._turns:
            ticket = self._guard.admit()
            alive = False
            call = Call(script, keys, args)
            try:
                await send(self._servers, [call], TIMEOUT_S)
                answer = call.answer.result()
                alive, self._loading = True, False
            except AWAY as error:
                alive = self._is_there(error)
                raise StoreUnavailable(f"{type(error).__name__} in {script.name}") from error
            except RedisError as error:
                alive, self._loading = True, False
                self._refusals[script.name] = f"{script.name}: {error}"
                raise StoreRefused(self._refusals[script.name]) from error
            finally:
                self._guard.record(ticket, alive=alive)
        self._refusals.pop(script.name, None)
        return answer

    def listen(self, channel: str) -> AsyncGenerator[bytes | None]:
        """What is published on `channel`: see `subscription.listen`."""
        return subscription.listen(self._servers, channel)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._servers.aclose()

    def _is_there(self, error: Exception) -> bool:
        """One that loads, wants a password or moves the key is there: it costs nothing to ask it again."""
        if isinstance(error, BusyLoadingError):
            self._loading = True
        elif self._loading and not isinstance(error, (RedisTimeoutError, TimeoutError)):
            self._loading = False  # it died of it
        return isinstance(error, (AuthenticationError, BusyLoadingError, *MOVING))


def connect(url: SecretStr, clock: Clock) -> Store:
    """A store at `url`; nothing is sent before the first script."""
    return Store(servers_of(url, clock, timeout_s=TIMEOUT_S), clock)

"""The store of the read path: short timeouts, nothing sent twice, errors of our own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import SecretStr
from redis.exceptions import AuthenticationError, BusyLoadingError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.clock import Clock
from proxy.errors import StoreError, StoreRefused, StoreUnavailable
from proxy.resilience.breaker import Ticket
from proxy.store import subscription
from proxy.store.batches import Batches
from proxy.store.calls import AWAY, MOVING, Call, put
from proxy.store.guard import Guard
from proxy.store.persistence import persistence_of
from proxy.store.scripts import Script
from proxy.store.servers import Servers, servers_of

TIMEOUT_S: Final = 0.5
_BATCHES: Final = 4
_MAX_BATCH: Final = 64
# An embedded store starts together with the processes that use it.
START_UP_S: Final = 3.0


class Store:
    """Runs scripts in the shared store. None is sent a second time when its answer was lost."""

    def __init__(self, servers: Servers, clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._guard = Guard(clock, "store")
        self._batches = Batches(servers, TIMEOUT_S, at_a_time=_BATCHES, size=_MAX_BATCH)
        self._born_at = clock.steady()
        self._loading: bool | None = None  # None: it has not answered yet
        self._said_loading_at = 0.0
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
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(script, keys, args, functools.partial(put, answer))
        return await answer

    def submit(
        self, script: Script, keys: Sequence[str], args: Sequence[Any], tell: Callable[[Any], None]
    ) -> None:
        """Have `tell` called with the answer of `script`, or with the StoreError that `run` would raise.

        Raises StoreUnavailable at once while the store is left alone.
        """
        ticket = self._guard.admit()
        self._batches.add(
            Call(script, keys, args, lambda answer: tell(self._settled(script, ticket, answer)))
        )

    async def about(self, key: str) -> Mapping[str, str]:
        """What the server that has `key` says of itself: see `persistence_of`."""
        return await persistence_of(self._servers, key)()

    def listen(self, channel: str) -> AsyncGenerator[bytes | None]:
        """What is published on `channel`: see `subscription.listen`."""
        return subscription.listen(self._servers, channel)

    async def aclose(self) -> None:
        """Let go out what is under way, then close every connection."""
        await self._batches.aclose()
        await self._servers.aclose()

    def _settled(self, script: Script, ticket: Ticket, answer: Any) -> Any:
        """What the caller is told of `answer`, and what it says of the store."""
        if isinstance(answer, AWAY):
            self._guard.failed(ticket, answer, alive=self._is_there(answer))
            return _because(answer, StoreUnavailable(f"{type(answer).__name__} in {script.name}"))
        self._loading = False
        self._guard.record(ticket, alive=True)
        if isinstance(answer, BaseException):
            self._refusals[script.name] = f"{script.name}: {answer}"
            return _because(answer, StoreRefused(self._refusals[script.name]))
        self._refusals.pop(script.name, None)
        return answer

    def _is_there(self, error: BaseException) -> bool:
        """One that loads, wants a password or moves the key is there: it costs nothing to ask it again."""
        now = self._clock.steady()
        if isinstance(error, BusyLoadingError):
            self._loading, self._said_loading_at = True, now
        elif self._loading and not isinstance(error, (RedisTimeoutError, TimeoutError)):
            # Connections get lost; if there are none for a while, it has died of it.
            self._loading = now - self._said_loading_at < START_UP_S
        return isinstance(error, (AuthenticationError, BusyLoadingError, *MOVING))


def _because(cause: BaseException, error: StoreError) -> StoreError:
    error.__cause__ = cause
    return error


def connect(url: SecretStr, clock: Clock) -> Store:
    """A store at `url`; nothing is sent before the first script."""
    return Store(servers_of(url, clock, timeout_s=TIMEOUT_S), clock)

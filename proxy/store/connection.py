"""The connection to Redis or Valkey: short timeouts, no silent retries, errors of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import redis.asyncio as redis
from pydantic import SecretStr
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.clock import Clock
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.resilience.breaker import Admission, Breaker, BreakerPolicy, Phase, Ticket
from proxy.store.scripts import Script
from proxy.telemetry import get_logger

TIMEOUT_S: Final = 0.5
CONNECT_TIMEOUT_S: Final = 2.0
MAX_CONNECTIONS: Final = 32
# An embedded store starts together with the processes that use it.
START_UP_S: Final = 3.0
NEWS_TIMEOUT_S: Final = 5.0

# A store that does not answer is left alone for a second, so that nobody waits for it again and again.
BREAKER: Final = BreakerPolicy(threshold=3, cooldown_s=1.0, probe_s=1.0)
AWAY: Final = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, MasterDownError, OSError)

_log = get_logger()


class Store:
    """Runs scripts in the shared store.

    Nothing is ever sent twice: redis-py's own retries are off, since an answer that was lost says nothing of
    whether the script ran.
    """

    def __init__(self, client: redis.Redis, listening: redis.ConnectionPool, clock: Clock) -> None:
        self._client = client
        self._listening = listening
        self._clock = clock
        self._breaker = Breaker()
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._born_at = clock.steady()
        self._loading: bool | None = None  # None: it has not answered yet
        self._refusals: dict[str, str] = {}  # by script, why its last run was refused

    @property
    def reachable(self) -> bool:
        """Whether the last calls went well."""
        return self._breaker.closed_for_s(self._clock.steady()) == 0.0

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
        """The answer of `script`.

        Raises StoreUnavailable when the store cannot be reached, is loading or takes more than half a
        second; StoreRefused when it says no.
        """
        # Those who wait for a connection see at their turn whether it is still worth it.
        async with self._turns:
            ticket = self._admitted()
            alive = False
            try:
                answer = await self._evaluate(script, keys, args)
                alive, self._loading = True, False
            except AWAY as error:
                # One that loads, or wants a password, is there: it costs nothing to ask it again.
                if isinstance(error, BusyLoadingError):
                    self._loading = True
                elif not isinstance(error, RedisTimeoutError) and self._loading:
                    self._loading = False  # it died of it
                alive = isinstance(error, (AuthenticationError, BusyLoadingError))
                raise StoreUnavailable(f"{type(error).__name__} in {script.name}") from error
            except (ResponseError, RedisError) as error:
                alive, self._loading = True, False
                self._refusals[script.name] = f"{script.name}: {error}"
                raise StoreRefused(self._refusals[script.name]) from error
            finally:
                self._record(ticket, alive=alive)
        self._refusals.pop(script.name, None)
        return answer

    async def listen(self, channel: str) -> AsyncIterator[bytes | None]:
        """What is published on `channel`, on a connection of its own; None whenever nothing is for a while.

        The first None comes when the subscription stands. Raises StoreUnavailable.
        """
        client = redis.Redis(connection_pool=self._listening)
        try:
            async with client.pubsub() as listener:
                await listener.subscribe(channel)
                while True:
                    heed_cancellation()
                    message = await listener.get_message(timeout=NEWS_TIMEOUT_S)
                    yield message["data"] if message is not None and message["type"] == "message" else None
        except (*AWAY, RedisError) as error:
            raise StoreUnavailable(f"{type(error).__name__} in a subscription") from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()
        await self._listening.disconnect()

    def _admitted(self) -> Ticket:
        self._breaker, ticket = self._breaker.admit(self._clock.steady(), BREAKER)
        if ticket.admission is Admission.REFUSE:
            raise StoreUnavailable("the store has not been answering")
        return ticket

    def _record(self, ticket: Ticket, *, alive: bool) -> None:
        was = self._breaker.phase
        self._breaker = self._breaker.record(ticket, self._clock.steady(), BREAKER, alive=alive)
        if was is Phase.CLOSED and self._breaker.phase is Phase.OPEN:
            _log.warning("store_unavailable")
        elif was is not Phase.CLOSED and self._breaker.phase is Phase.CLOSED:
            _log.info("store_back")

    async def _evaluate(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return await self._client.evalsha(script.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.eval(script.text, len(keys), *keys, *args)


def heed_cancellation() -> None:
    """Raise the CancelledError that asyncio.wait_for, by which redis-py sends, swallows now and then.

    It does so up to Python 3.11 when what it waits for ends in that very moment (CPython issue 86296).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def connect(url: SecretStr, clock: Clock) -> Store:
    """A store at `url`; nothing is sent before the first script."""
    return Store(
        redis.Redis.from_pool(pool_of(url, timeout_s=TIMEOUT_S)),
        pool_of(url, timeout_s=NEWS_TIMEOUT_S + TIMEOUT_S),
        clock,
    )


def pool_of(url: SecretStr, *, timeout_s: float) -> redis.ConnectionPool:
    """Connections to `url` on which nothing takes longer than `timeout_s` or is sent twice by the library."""
    return redis.ConnectionPool.from_url(
        url.get_secret_value(),
        max_connections=MAX_CONNECTIONS,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
    )

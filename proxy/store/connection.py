"""The connection to Redis or Valkey: short timeouts, no silent retries, errors of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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
from proxy.errors import StoreRefused, StoreUnavailable, UsageError
from proxy.resilience.breaker import Admission, Breaker, BreakerPolicy, Phase
from proxy.store.scripts import Script
from proxy.telemetry import get_logger

TIMEOUT_S: Final = 0.25
MAX_CONNECTIONS: Final = 32

# A store that does not answer is left alone for a second, so that nobody waits for it again and again.
_BREAKER: Final = BreakerPolicy(threshold=3, cooldown_s=1.0, probe_s=1.0)
_AWAY: Final = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, MasterDownError, OSError)
_SUPPORTED: Final = ("redis://", "rediss://", "unix://")

_log = get_logger()


class Store:
    """Runs scripts in the shared store.

    Nothing is ever sent twice: redis-py's own retries are off, since an answer that was lost says nothing of
    whether the script ran.
    """

    def __init__(self, client: redis.Redis, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._breaker = Breaker()
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)

    @property
    def reachable(self) -> bool:
        """Whether the last calls went well."""
        return self._breaker.closed_for_s(self._clock.steady()) == 0.0

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The answer of `script`.

        Raises StoreUnavailable when the store cannot be reached, is loading or takes more than a quarter of a
        second; StoreRefused when it says no.
        """
        # Those who wait for a connection see at their turn whether it is still worth it.
        async with self._turns:
            admission = self._admitted()
            alive = False
            try:
                answer = await self._evaluate(script, keys, args)
                alive = True
            except _AWAY as error:
                alive = isinstance(error, AuthenticationError)
                raise StoreUnavailable(f"{type(error).__name__} in {script.name}") from error
            except (ResponseError, RedisError) as error:
                alive = True
                raise StoreRefused(f"{script.name}: {error}") from error
            finally:
                self._record(admission, alive=alive)
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def _admitted(self) -> Admission:
        self._breaker, admission = self._breaker.admit(self._clock.steady(), _BREAKER)
        if admission is Admission.REFUSE:
            raise StoreUnavailable("the store has not been answering")
        return admission

    def _record(self, admission: Admission, *, alive: bool) -> None:
        was = self._breaker.phase
        self._breaker = self._breaker.record(admission, self._clock.steady(), _BREAKER, alive=alive)
        if was is Phase.CLOSED and self._breaker.phase is Phase.OPEN:
            _log.warning("store_unavailable")
        elif was is not Phase.CLOSED and self._breaker.phase is Phase.CLOSED:
            _log.info("store_back")

    async def _evaluate(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return await self._client.evalsha(script.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.eval(script.text, len(keys), *keys, *args)


def connect(url: SecretStr, clock: Clock) -> Store:
    """A store at `url`; nothing is sent before the first script. Raises UsageError for an unusable URL."""
    text = url.get_secret_value()
    if not text.startswith(_SUPPORTED):
        raise UsageError(f"FEEDPROXY_REDIS_URL: {text.partition('://')[0]}:// is not supported yet")
    pool = redis.ConnectionPool.from_url(
        text,
        max_connections=MAX_CONNECTIONS,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return Store(redis.Redis.from_pool(pool), clock)

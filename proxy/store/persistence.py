"""What the store says of how it keeps what it is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.connection import AWAY


def persistence_of(pool: redis.ConnectionPool) -> Callable[[], Awaitable[Mapping[str, str]]]:
    """What asks the store behind `pool` for its settings that begin with "append".

    Where CONFIG is not permitted, as with hosted stores, it is `aof_enabled` of INFO instead. The pool stays
    the caller's. What is returned raises StoreUnavailable and StoreRefused.
    """
    client = redis.Redis(connection_pool=pool)

    async def ask() -> Mapping[str, str]:
        try:
            return await _settings(client)
        except AWAY as error:
            raise StoreUnavailable(f"{type(error).__name__} when asked for its settings") from error
        except RedisError as error:
            raise StoreRefused(f"asked for its settings: {error}") from error

    return ask


async def _settings(client: redis.Redis) -> Mapping[str, str]:
    try:
        settings = await client.config_get("append*")
    except ResponseError:
        told = await client.info("persistence")
        return {"aof_enabled": str(told.get("aof_enabled", ""))}
    return {_text(name): _text(value) for name, value in settings.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

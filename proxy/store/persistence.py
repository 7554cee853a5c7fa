"""What the store says of how it keeps what it is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.calls import AWAY
from proxy.store.servers import Servers


def persistence_of(servers: Servers, key: str) -> Callable[[], Awaitable[Mapping[str, str]]]:
    """What asks the server that has `key` for its settings that begin with "append".

    Where CONFIG is not permitted, as with hosted stores, it is `aof_enabled` of INFO instead. What is
    returned raises StoreUnavailable and StoreRefused.
    """

    async def ask() -> Mapping[str, str]:
        try:
            return await _settings(redis.Redis(connection_pool=await servers.pool_of(key)))
        except AWAY as error:
            servers.doubt()
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

"""What the store says of how it keeps what it is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.calls import AWAY
from proxy.store.servers import Servers

# Of INFO: what is written to disk and how that goes, how much memory there is, and whether it is a replica.
_SECTIONS: Final = ("persistence", "memory", "replication")
_TOLD: Final = (
    "aof_enabled",
    "aof_last_write_status",
    "maxmemory",
    "maxmemory_policy",
    "rdb_last_bgsave_status",
    "role",
    "used_memory",
)


def persistence_of(servers: Servers, key: str) -> Callable[[], Awaitable[Mapping[str, str]]]:
    """What asks the server that has `key` for its settings that begin with "append", and for _TOLD of INFO.

    Where CONFIG is not permitted, as with hosted stores, there is but the latter. What is returned raises
    StoreUnavailable and StoreRefused.
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
    told: dict[str, object] = {}
    for section in _SECTIONS:
        told |= await client.info(section)
    known: dict[str, str] = {name: str(told[name]) for name in _TOLD if name in told}
    try:
        settings = await client.config_get("append*")
    except ResponseError:
        return known
    return known | {_text(name): _text(value) for name, value in settings.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

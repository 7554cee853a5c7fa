"""A connection to a store outside of `serve`, which for the embedded one means to run it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import redis.asyncio as redis
from pydantic import SecretStr
from redis.exceptions import RedisError

from proxy.clock import Clock
from proxy.errors import OperationalError
from proxy.store.datadir import data_dir_lock, socket_path
from proxy.store.embedded import EmbeddedValkey
from proxy.store.probe import ping
from proxy.store.residence import Place
from proxy.store.servers import servers_of

_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 0.02


@contextlib.asynccontextmanager
async def opened(place: Place, clock: Clock, *, key: str) -> AsyncIterator[redis.Redis]:
    """The server that has `key`, and in a cluster all keys of the same hash tag; it answers.

    The embedded one runs for as long as the block lasts, and nobody else may run it meanwhile. Raises
    OperationalError when it cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        url = place.url
        if url is None:
            url = await stack.enter_async_context(_embedded(place, clock))
        servers = servers_of(url, clock, timeout_s=_TIMEOUT_S)
        stack.push_async_callback(servers.aclose)
        try:
            client = redis.Redis(connection_pool=await servers.pool_of(key))
            await client.ping()
        except (RedisError, OSError) as error:
            raise OperationalError(f"{place.name} does not answer: {error}") from None
        yield client


@contextlib.asynccontextmanager
async def _embedded(place: Place, clock: Clock) -> AsyncIterator[SecretStr]:
    with data_dir_lock(place.data_dir) as data_dir:
        valkey = EmbeddedValkey(data_dir, memory_mb=place.memory_mb, clock=clock)
        running = asyncio.create_task(valkey.run_once(), name="valkey")
        try:
            while not (await ping(socket_path(data_dir)) or b"").startswith(b"+PONG"):
                if running.done():
                    raise OperationalError(f"the embedded store in {data_dir} does not start")
                await asyncio.sleep(_LOOK_S)
            yield SecretStr(valkey.url)
        finally:
            await valkey.stop()
            await asyncio.wait([running])

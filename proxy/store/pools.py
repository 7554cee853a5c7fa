"""Connections to servers, on which nothing takes long and nothing is sent twice by the library."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final

import redis.asyncio as redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.address import Address

CONNECT_TIMEOUT_S: Final = 2.0
MAX_CONNECTIONS: Final = 40

Node = tuple[str, int]  # host and port; ("", 0) for a unix socket
LOCAL: Final[Node] = ("", 0)


class Pools:
    """A pool for each server at `address`, or for each of its Sentinels."""

    def __init__(self, address: Address, timeout_s: float, *, sentinels: bool = False) -> None:
        self._address = address
        self._options: dict[str, Any] = {
            "username": address.sentinel_username if sentinels else address.username,
            "password": address.sentinel_password if sentinels else address.password,
            "db": 0 if sentinels else address.db,
            "max_connections": MAX_CONNECTIONS,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": min(timeout_s, CONNECT_TIMEOUT_S),
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "protocol": 2,
        }
        self._pools: dict[Node, redis.ConnectionPool] = {}
        self._retired: list[redis.ConnectionPool] = []
        self._closing: set[asyncio.Task[None]] = set()

    def at(self, node: Node) -> redis.ConnectionPool:
        """Connections to `node`; none is made before it is needed."""
        pool = self._pools.get(node)
        if pool is None:
            pool = self._pools[node] = self._made(node)
        return pool

    def keep(self, nodes: Collection[Node]) -> None:
        """Close the connections to all others, those in use as well: whoever waits there waits in vain."""
        for node in [node for node in self._pools if node not in nodes]:
            pool = self._pools.pop(node)
            self._retired.append(pool)
            task = asyncio.create_task(_closed(pool), name="store pool closing")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._closing:
            await asyncio.wait(self._closing)
        # Of a retired pool, a connection may have been made while it was closed.
        for pool in (*self._retired, *self._pools.values()):
            await _closed(pool)

    def _made(self, node: Node) -> redis.ConnectionPool:
        if node == LOCAL:
            return redis.ConnectionPool(_LocalConnection, path=self._address.path, **self._options)
        options = {"host": node[0], "port": node[1], "socket_keepalive": True, **self._options}
        if self._address.tls is None:
            return redis.ConnectionPool(_PlainConnection, **options)
        return redis.ConnectionPool(_TlsConnection, **{**options, **self._address.tls})


class _EndTold:
    """A connection that says as a ConnectionError that the server has closed it.

    uvloop raises a RuntimeError for what is written then, which the library passes on as it is.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RuntimeError as error:
            if "closed" not in str(error):
                raise
            raise RedisConnectionError("closed by the server") from error


class _LocalConnection(_EndTold, UnixDomainSocketConnection):
    """By a unix socket."""


class _PlainConnection(_EndTold, Connection):
    """By TCP."""


class _TlsConnection(_EndTold, SSLConnection):
    """By TCP under TLS."""


async def _closed(pool: redis.ConnectionPool) -> None:
    try:
        await pool.disconnect()
    except (redis.RedisError, OSError):
        return  # it is gone

"""What is published on a channel, for as long as the connection holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from proxy.errors import StoreUnavailable
from proxy.store.calls import AWAY, connection_to, heed_cancellation, read
from proxy.store.servers import Servers

# After so long a silence the server is asked whether it is there, and must answer within as long again.
IDLE_S: Final = 1.0


async def listen(servers: Servers, channel: str) -> AsyncGenerator[bytes | None]:
    """What is published on `channel`, on a connection of its own; None whenever nothing is for a while.

    The first None comes when the subscription stands. Raises StoreUnavailable as soon as something may be
    missed: the connection broke, the server is silent for two seconds, or another is the master by now.
    """
    connection = None
    try:
        async with connection_to(servers, channel) as connection:
            pool = await servers.pool_of(channel)
            await connection.send_command("SUBSCRIBE", channel)
            heed_cancellation()
            await read(connection, IDLE_S)
            yield None
            asked = False
            while True:
                message = await connection.read_response(timeout=IDLE_S)
                if message is not None:
                    asked = False
                    if message[0] == b"message":
                        yield message[2]
                    continue
                if asked:
                    raise RedisConnectionError("no answer to a ping")
                if await servers.pool_of(channel) is not pool:
                    raise RedisConnectionError("another is the master by now")
                await connection.send_command("PING")
                heed_cancellation()
                asked = True
                yield None
    except (*AWAY, RedisError) as error:
        servers.doubt()
        raise StoreUnavailable(f"{type(error).__name__} in a subscription") from error

"""The store of the queue: patient, and safe to send a script again whose answer was lost."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from pydantic import SecretStr
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError

from proxy.clock import Clock
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.resilience.breaker import Ticket
from proxy.store import subscription
from proxy.store.batches import Batches
from proxy.store.calls import AWAY, MOVING, Call, connection_to, heed_cancellation, put, read
from proxy.store.guard import Guard
from proxy.store.scripts import Script
from proxy.store.servers import Servers, servers_of

TIMEOUT_S: Final = 2.0
# A script is sent so often before its caller is told that the store is away, after pauses of these seconds.
PAUSES_S: Final = (0.0, 0.05, 0.25)
BLOCK_MS: Final = 5000
# Small, so that a busy worker reads the answers to some while the store carries out others, and that a script
# of so many calls does not hold up everybody else.
_BATCHES: Final = 2
_MAX_BATCH: Final = 32

# A replica takes no jobs: its master is elsewhere, or will be.
_AWAY: Final = (*AWAY, ReadOnlyError)


class QueueStore:
    """Runs scripts that may be run twice, and waits for what comes. All keys are in one slot of a cluster.

    A call whose caller was cancelled is carried out all the same: scripts must be able to bear that.
    """

    def __init__(self, servers: Servers, clock: Clock) -> None:
        self._servers = servers
        self._guard = Guard(clock, "queue_store")
        self._batches = Batches(servers, TIMEOUT_S, at_a_time=_BATCHES, size=_MAX_BATCH)

    @property
    def reachable(self) -> bool:
        """Whether the last calls went well."""
        return self._guard.closed

    async def run(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        """The answer of `script`, which is sent up to three times, with the same arguments.

        Raises StoreUnavailable when the store cannot be reached, is loading, a replica, or takes more than
        two seconds each time (the script may have run all the same), at once when it has not been answering;
        StoreRefused when it says no.
        """
        for attempt, pause_s in enumerate(PAUSES_S, start=1):
            if pause_s:
                await asyncio.sleep(pause_s)
            ticket = self._guard.admit()
            try:
                return await self._sent(ticket, script, key, args)
            except StoreUnavailable:
                if attempt == len(PAUSES_S):
                    raise
        raise AssertionError("unreachable")

    async def wait_for_entries(
        self, stream: str, group: str, consumer: str, count: int
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """The next entries for `consumer`, waited for on a connection of their own for up to five seconds.

        Raises StoreUnavailable; StoreRefused, as when there is no such group.
        """
        options = ("COUNT", count, "BLOCK", BLOCK_MS, "STREAMS", stream, ">")
        try:
            async with connection_to(self._servers, stream) as connection:
                await connection.send_command("XREADGROUP", "GROUP", group, consumer, *options)
                heed_cancellation()
                answer = await read(connection, BLOCK_MS / 1000 + TIMEOUT_S)
        except _AWAY as error:
            self._servers.doubt()
            raise StoreUnavailable(f"{type(error).__name__} in a blocking read") from error
        except RedisError as error:
            raise StoreRefused(f"blocking read: {error}") from error
        entries = answer[0][1] if answer else []
        return [(entry, dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in entries]

    def listen(self, channel: str) -> AsyncGenerator[bytes | None]:
        """What is published on `channel`: see `subscription.listen`."""
        return subscription.listen(self._servers, channel)

    async def aclose(self) -> None:
        """Let go out what is under way, then close every connection."""
        await self._batches.aclose()
        await self._servers.aclose()

    async def _sent(self, ticket: Ticket, script: Script, key: str, args: Sequence[Any]) -> Any:
        try:
            answer = await self._queued(script, key, args)
        except StoreUnavailable as error:
            self._guard.failed(ticket, error.__cause__, alive=isinstance(error.__cause__, MOVING))
            raise
        except StoreRefused:
            self._guard.record(ticket, alive=True)
            raise
        except asyncio.CancelledError:
            self._guard.abandon(ticket)
            raise
        self._guard.record(ticket, alive=True)
        return answer

    async def _queued(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._batches.add(Call(script, (key,), args, functools.partial(put, answer)))
        try:
            return await answer
        except _AWAY as error:
            if isinstance(error, AuthenticationError):
                raise StoreRefused(f"{script.name}: {error}") from error
            raise StoreUnavailable(f"{type(error).__name__} in {script.name}") from error
        except RedisError as error:
            raise StoreRefused(f"{script.name}: {error}") from error


def connect_queue(url: SecretStr, clock: Clock) -> QueueStore:
    """The queue's connection to `url`; nothing is sent before the first script."""
    return QueueStore(servers_of(url, clock, timeout_s=TIMEOUT_S), clock)

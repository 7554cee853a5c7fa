"""The connection of the queue: patient, and safe to send a script again whose answer was lost.

Calls that are made at the same time travel together, so that a busy worker costs few round trips.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as redis
from pydantic import SecretStr
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError

from proxy.clock import Clock
from proxy.errors import StoreError, StoreRefused, StoreUnavailable
from proxy.resilience.breaker import Admission, Breaker, Phase, Ticket
from proxy.store.connection import AWAY, BREAKER, heed_cancellation, pool_of
from proxy.store.scripts import Script
from proxy.telemetry import get_logger

TIMEOUT_S: Final = 2.0
# A script is sent so often before its caller is told that the store is away, after pauses of these seconds.
PAUSES_S: Final = (0.0, 0.05, 0.25)
BLOCK_MS: Final = 5000
# So many batches are under way at a time; what comes meanwhile makes up the next one.
_BATCHES: Final = 2
_MAX_BATCH: Final = 64
_NEWS_TIMEOUT_S: Final = 5.0

_log = get_logger()


@dataclass(slots=True, eq=False)
class _Call:
    script: Script
    key: str
    args: Sequence[Any]
    answer: asyncio.Future[Any]
    in_full: bool = False  # the store does not know the script yet

    def command(self) -> tuple[Any, ...]:
        how = ("EVAL", self.script.text) if self.in_full else ("EVALSHA", self.script.sha)
        return (*how, 1, self.key, *self.args)


class QueueStore:
    """Runs scripts that may be run twice, and waits for what comes.

    A call whose caller was cancelled is carried out all the same: scripts must be able to bear that.
    """

    def __init__(self, pool: redis.ConnectionPool, waiting: redis.ConnectionPool, clock: Clock) -> None:
        self._pool = pool
        self._waiting = waiting
        self._clock = clock
        self._breaker = Breaker()
        self._calls: list[_Call] = []
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def reachable(self) -> bool:
        """Whether the last calls went well."""
        return self._breaker.closed_for_s(self._clock.steady()) == 0.0

    async def run(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        """The answer of `script`, which is sent up to three times, with the same arguments.

        Raises StoreUnavailable when the store cannot be reached, is loading or takes more than two seconds
        each time (the script may have run all the same); StoreRefused when it says no.
        """
        for attempt, pause_s in enumerate(PAUSES_S, start=1):
            try:
                await asyncio.sleep(pause_s)
                return await self._sent(script, key, args)
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
        connection = None
        try:
            connection = await self._waiting.get_connection()  # type: ignore[no-untyped-call]
            await connection.send_command("XREADGROUP", "GROUP", group, consumer, *options)
            heed_cancellation()
            answer = await connection.read_response()
        except AWAY as error:
            raise StoreUnavailable(f"{type(error).__name__} in a blocking read") from error
        except RedisError as error:
            raise StoreRefused(f"blocking read: {error}") from error
        except asyncio.CancelledError:
            # The answer may still come: nobody else may take it for theirs.
            if connection is not None:
                await connection.disconnect(nowait=True)
            raise
        finally:
            if connection is not None:
                await self._waiting.release(connection)
        entries = answer[0][1] if answer else []
        return [(entry, dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in entries]

    async def listen(self, channel: str) -> AsyncIterator[bytes | None]:
        """What is published on `channel`, on a connection of its own; None whenever nothing is for a while.

        The first None comes when the subscription stands. Raises StoreUnavailable.
        """
        client = redis.Redis(connection_pool=self._waiting)
        try:
            async with client.pubsub() as listener:
                await listener.subscribe(channel)
                while True:
                    heed_cancellation()
                    message = await listener.get_message(timeout=_NEWS_TIMEOUT_S)
                    yield message["data"] if message is not None and message["type"] == "message" else None
        except (*AWAY, RedisError) as error:
            raise StoreUnavailable(f"{type(error).__name__} in a subscription") from error

    async def aclose(self) -> None:
        """Let go out what is under way, then close every connection."""
        while self._batches:
            await asyncio.wait(self._batches)
        await self._pool.disconnect()
        await self._waiting.disconnect()

    async def _sent(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        admission = self._admitted()
        try:
            answer = await self._queued(script, key, args)
        except StoreUnavailable:
            self._record(admission, alive=False)
            raise
        except StoreRefused:
            self._record(admission, alive=True)
            raise
        except asyncio.CancelledError:
            self._breaker = self._breaker.abandon(admission, self._clock.steady())
            raise
        self._record(admission, alive=True)
        return answer

    def _admitted(self) -> Ticket:
        self._breaker, ticket = self._breaker.admit(self._clock.steady(), BREAKER)
        if ticket.admission is Admission.REFUSE:
            raise StoreUnavailable("the store has not been answering")
        return ticket

    def _record(self, ticket: Ticket, *, alive: bool) -> None:
        was = self._breaker.phase
        self._breaker = self._breaker.record(ticket, self._clock.steady(), BREAKER, alive=alive)
        if was is Phase.CLOSED and self._breaker.phase is Phase.OPEN:
            _log.warning("queue_store_unavailable")
        elif was is not Phase.CLOSED and self._breaker.phase is Phase.CLOSED:
            _log.info("queue_store_back")

    async def _queued(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        call = _Call(script, key, args, asyncio.get_running_loop().create_future())
        while True:
            self._calls.append(call)
            if len(self._batches) < _BATCHES:
                batch = asyncio.create_task(self._send_batches(), name="queue batch")
                self._batches.add(batch)
                batch.add_done_callback(self._batches.discard)
            try:
                return await call.answer
            except NoScriptError:
                call = _Call(script, key, args, asyncio.get_running_loop().create_future(), in_full=True)
            except AWAY as error:
                if isinstance(error, AuthenticationError):
                    raise StoreRefused(f"{script.name}: {error}") from error
                raise StoreUnavailable(f"{type(error).__name__} in {script.name}") from error
            except RedisError as error:
                raise StoreRefused(f"{script.name}: {error}") from error

    async def _send_batches(self) -> None:
        while self._calls:
            calls, self._calls = self._calls[:_MAX_BATCH], self._calls[_MAX_BATCH:]
            try:
                await self._exchange(calls)
            except (RedisError, StoreError, OSError) as error:
                for call in calls:
                    _settle(call, error)

    async def _exchange(self, calls: Sequence[_Call]) -> None:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(connection.pack_commands([call.command() for call in calls]))
            for call in calls:
                try:
                    _settle(call, await connection.read_response())
                except ResponseError as error:
                    _settle(call, error)
        except BaseException:
            # Answers that are still to come belong to nobody.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)


def _settle(call: _Call, answer: Any) -> None:
    if call.answer.done():
        return
    if isinstance(answer, BaseException):
        call.answer.set_exception(answer)
    else:
        call.answer.set_result(answer)


def connect_queue(url: SecretStr, clock: Clock) -> QueueStore:
    """The queue's connection to `url`; nothing is sent before the first script. Raises UsageError."""
    return QueueStore(
        pool_of(url, timeout_s=TIMEOUT_S),
        pool_of(url, timeout_s=BLOCK_MS / 1000 + 2),
        clock,
    )

"""Scripts on their way to the server that has their keys, and their answers on the way back.

Nothing is ever sent twice by itself: redis-py's own retries are off, since an answer that was lost says
nothing of whether the script ran. What is sent again here is what a server said it did not carry out.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.store.scripts import Script
from proxy.store.servers import Servers
from proxy.telemetry import get_logger

_log = get_logger()

# How often a script may be told to go elsewhere, or to come in full.
_MAX_HOPS: Final = 5

# A slot is on its way from one node to another. An ASK is not followed: a script would find half of its keys.
MOVING: Final = (AskError, TryAgainError)
# It does not answer, or not now: nothing is known of what was asked, or nothing was carried out.
AWAY: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,  # MASTERDOWN is one of these
    *MOVING,
    OSError,
)


@dataclass(slots=True, eq=False)
class Call:
    """A script with what it is given; `tell` is called once, with what came back or with the error."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Any]
    tell: Callable[[Any], None]
    in_full: bool = False  # the server does not know the script yet
    settled: bool = False

    def settle(self, answer: Any) -> None:
        """Hand over the answer, unless that was done before."""
        if not self.settled:
            self.settled = True
            self.tell(answer)


def put(future: asyncio.Future[Any], answer: Any) -> None:
    """Give `future` the answer, or the error that came instead, unless nobody waits for it any more."""
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


async def send(servers: Servers, calls: Sequence[Call], timeout_s: float) -> None:
    """Send `calls` together, to each server what is for it, and settle each of them.

    The keys of one call are all in one slot. `timeout_s` is for each answer; twice as long is for everything,
    connecting included. Never raises, unless cancelled: then what was sent may yet be carried out.
    """
    try:
        await _send(servers, calls, timeout_s)
    except Exception:  # noqa: BLE001  (a bug must not leave callers waiting)
        _log.exception("store_calls_crashed")
    finally:
        for call in calls:
            if not call.settled:
                call.settle(RedisConnectionError("the call was broken off"))


async def _send(servers: Servers, calls: Sequence[Call], timeout_s: float) -> None:
    unsettled = calls
    try:
        async with asyncio.timeout(2 * timeout_s):
            for _ in range(_MAX_HOPS):
                parts = await _by_server(servers, unsettled)
                if len(parts) > 1:
                    async with asyncio.TaskGroup() as group:
                        for part in parts:
                            group.create_task(_send(servers, part, timeout_s))
                    return
                unsettled = await _exchange(servers, unsettled, timeout_s)
                if not unsettled:
                    return
        raise RedisConnectionError("sent from server to server")
    except (*AWAY, RedisError) as error:
        servers.doubt()
        for call in unsettled:
            call.settle(error)


@contextlib.asynccontextmanager
async def connection_to(servers: Servers, key: str) -> AsyncIterator[Any]:
    """A connection (as redis-py has it) to the server that has `key`; closed unless all goes well on it."""
    pool = await servers.pool_of(key)
    try:
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    except BaseException:
        heed_cancellation()
        raise
    try:
        yield connection
    except BaseException:
        # Answers that are still to come belong to nobody.
        await connection.disconnect(nowait=True)
        heed_cancellation()
        raise
    finally:
        await pool.release(connection)


async def read(connection: Any, timeout_s: float) -> Any:
    """The next answer on `connection`, which is closed when it does not come: TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await connection.read_response(timeout=math.inf)


def heed_cancellation() -> None:
    """Raise the CancelledError that asyncio.wait_for, by which redis-py works, swallows now and then.

    It does so up to Python 3.11 when what it waits for ends in that very moment (CPython issue 86296).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _by_server(servers: Servers, calls: Sequence[Call]) -> list[list[Call]]:
    """`calls`, apart by where they are to go."""
    parts: dict[int, list[Call]] = {}
    for call in calls:
        parts.setdefault(id(await servers.pool_of(call.keys[0])), []).append(call)
    return list(parts.values())


async def _exchange(servers: Servers, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
    """Settle `calls`, all for one server, except for those that are to be sent again, which are returned."""
    again: list[Call] = []
    demoted = False
    async with connection_to(servers, calls[0].keys[0]) as connection:
        together = _together(calls)
        # Ten times as fast as what the connection packs with by itself.
        await connection.send_packed_command(b"".join(map(_packed, together)))
        for part in together:
            try:
                answers = await read(connection, timeout_s)
                if not part[0].script.step:
                    answers = [answers]
            except NoScriptError:
                for call in part:
                    call.in_full = True
                again += part
                continue
            except MovedError as error:
                if servers.moved(part[0].keys[0], error.host or getattr(connection, "host", ""), error.port):
                    again += part
                    continue
                answers = [ResponseError("this is a node of a cluster: name it by redis+cluster://")] * len(
                    part
                )
            except ResponseError as error:
                answers = [error] * len(part)
            for call, answer in zip(part, answers, strict=True):
                told = _plain(answer)
                demoted = demoted or isinstance(told, (ReadOnlyError, ClusterDownError))
                call.settle(told)
        if demoted:
            # Another may be the master by now, be it behind the same name.
            servers.doubt()
            await connection.disconnect(nowait=True)
    return again


def _together(calls: Sequence[Call]) -> list[list[Call]]:
    """`calls`, apart by the commands that they are: those of one step are one."""
    parts: dict[Hashable, list[Call]] = {}
    for call in calls:
        command = (call.script.name, *call.keys) if call.script.step else id(call)
        parts.setdefault(command, []).append(call)
    return list(parts.values())


def _packed(part: Sequence[Call]) -> bytes:
    """The command that `part` is sent as."""
    first = part[0]
    script, args = first.script, first.args
    how = ("EVAL", script.text) if first.in_full else ("EVALSHA", script.sha)
    if script.step:
        args = [script.name]
        for call in part:
            args += (len(call.args), *call.args)
    packed: bytes = hiredis.pack_command((*how, len(first.keys), *first.keys, *args))
    return packed


def _plain(answer: Any) -> Any:
    """`answer`; Redis 6.2 wraps what a replica says to a script that writes."""
    if isinstance(answer, ResponseError) and "-READONLY " in str(answer):
        return ReadOnlyError(str(answer))
    return answer

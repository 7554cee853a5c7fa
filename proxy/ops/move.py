"""The queue, and all that is not cache, carried from one store to another.

Both sides carry a mark while it is under way, and no step of the queue runs where there is one (queue.lua):
whoever still works there can neither lose a post nor send it twice. The move is done in the instant in which
the source's mark says so. Until then the source has everything and a later run goes on; from then on the
target has it, and what is left to do is to tidy up.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from proxy.clock import Clock
from proxy.errors import OperationalError
from proxy.store.places import opened
from proxy.store.residence import EMBEDDED, Place
from proxy.store.transfer import Server, carry, names_of, remove
from proxy.telemetry import get_logger

# What processes leave behind that have been at work for nobody yet: worth nothing.
_TRACES: Final = (b"bells", b"errands", b"workers", b"swept", b"requests", b"resolved", b"pace", b"pauses")
_TRACES_OF_WORKERS: Final = b"knows:"
_PERSIST_MS: Final = 10_000

_log = get_logger()

# Told how many keys there are in all, then each time how many more are done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a move has done. `waiting` counts the deliveries that have not come to an end."""

    source: str
    target: str
    keys: int
    copied: int
    waiting: int

    def as_json(self) -> Mapping[str, Any]:
        """For programs."""
        return {
            "from": self.source,
            "to": self.target,
            "keys": self.keys,
            "copied": self.copied,
            "waiting": self.waiting,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """What each side knows of the move. `way` is in, out or gone."""

    move: str
    way: str
    other: str


class _Side:
    """One end of a move."""

    def __init__(self, client: Server, namespace: str, name: str) -> None:
        self.client = client
        self.prefix = prefix_of(namespace)
        self.name = name
        self._namespace = namespace
        self._mark_key = f"{self.prefix}move".encode()

    async def mark(self) -> _Mark | None:
        fields = {
            key.decode(): value.decode() for key, value in (await self.client.hgetall(self._mark_key)).items()
        }
        if not fields:
            return None
        return _Mark(move=fields["move"], way=fields["way"], other=fields["other"])

    async def put_mark(self, mark: _Mark) -> None:
        fields = {"format": "1", "move": mark.move, "way": mark.way, "other": mark.other}
        await self.client.hset(self._mark_key, mapping=dict(fields))

    async def remove_mark(self) -> None:
        await self.client.delete(self._mark_key)

    async def keys(self) -> set[bytes]:
        return await names_of(self.client, self.prefix) - {self._mark_key}

    async def waiting(self) -> int:
        return int(await self.client.zcard(f"{self.prefix}live"))

    async def persist(self) -> None:
        """Have it on disk, where the server can be asked for that."""
        try:
            await self.client.execute_command("WAITAOF", 1, 0, _PERSIST_MS)
        except ResponseError as error:
            _log.debug("not_asked_to_persist", store=self.name, reason=str(error))

    async def check_idle(self, lease_s: float) -> None:
        """Raises OperationalError when processes are at work there.

        Of the embedded store nobody is who has not its data directory, and that is ours now.
        """
        if self.name == EMBEDDED:
            return
        seconds, _ = await self.client.time()
        since_ms = (seconds - lease_s) * 1000
        workers = await self.client.zrangebyscore(f"{self.prefix}workers", since_ms, "+inf")
        if workers:
            raise OperationalError(
                f"{self.name}: the worker {workers[0].decode(errors='replace')} was at work within the last "
                f"{lease_s:g} s; stop every serve and worker of both stores first, and wait for so long if "
                "one of them was killed"
            )
        if await self._listeners():
            raise OperationalError(
                f"{self.name}: a serve of this namespace is connected to it; stop every serve and worker of "
                "both stores first"
            )

    async def _listeners(self) -> int:
        try:
            return sum(
                [
                    len(await self.client.pubsub_channels(f"{prefix}*"))
                    for prefix in (self.prefix, f"{self._namespace}:feed:")
                ]
            )
        except ResponseError:  # not permitted, as with hosted stores
            return 0


def prefix_of(namespace: str) -> str:
    """What all keys begin with that are not cache."""
    return f"{namespace}:{{q}}:"


async def move(
    source: Place, target: Place, clock: Clock, *, namespace: str, lease_s: float, progress: Progress
) -> Moved:
    """Carry everything of `namespace` but the cache from `source` to `target`; run again, go on.

    Raises OperationalError when one of them cannot be had, when processes are at work there, and when the
    target has something of its own.
    """
    if source.name == target.name:
        raise OperationalError(f"{source.name} is both the source and the target")
    prefix = prefix_of(namespace)
    async with opened(source, clock, key=prefix) as one, opened(target, clock, key=prefix) as other:
        ends = _Side(one, namespace, source.name), _Side(other, namespace, target.name)
        try:
            return await _moved(*ends, lease_s, progress)
        except (RedisError, OSError) as error:
            raise OperationalError(f"interrupted, run it again to go on: {error}") from error


async def call_off(place: Place, clock: Clock, *, namespace: str) -> None:
    """Have the queue of `place` go on where a move away from it was begun; nothing was moved then.

    Raises OperationalError when it is the store that was moved to.
    """
    async with opened(place, clock, key=prefix_of(namespace)) as client:
        side = _Side(client, namespace, place.name)
        mark = await side.mark()
        if mark is not None and mark.way != "out":
            raise OperationalError(
                f"a move between {place.name} and {mark.other} is half done: finish that first"
            )
        await side.remove_mark()


async def _moved(source: _Side, target: _Side, lease_s: float, progress: Progress) -> Moved:
    keys = await source.keys()
    known = await source.mark()
    if known is not None and known.way == "in":
        raise OperationalError(f"{source.name} is the target of a move from {known.other}: finish that first")
    if known is not None and known.way == "gone":
        waiting = await target.waiting() if known.other == target.name else 0
        await _tidy_up(source, target, known, keys)
        return Moved(source=source.name, target=target.name, keys=0, copied=0, waiting=waiting)
    if not keys:
        return Moved(source=source.name, target=target.name, keys=0, copied=0, waiting=0)
    move_id = await _agreed(target, known)
    if known is None:  # or both are marked by now, and nobody can be at work
        for side in (source, target):
            await side.check_idle(lease_s)
    await source.put_mark(_Mark(move=move_id, way="out", other=target.name))
    await target.put_mark(_Mark(move=move_id, way="in", other=source.name))
    keys = await source.keys()  # nothing is added from now on
    waiting = await source.waiting()
    progress(len(keys), 0)
    copied = await carry(source.client, target.client, keys, advance=lambda count: progress(len(keys), count))
    await remove(target.client, await target.keys() - keys)
    await target.persist()
    done = _Mark(move=move_id, way="gone", other=target.name)
    await source.put_mark(done)
    await source.persist()
    await _tidy_up(source, target, done, keys)
    return Moved(source=source.name, target=target.name, keys=len(keys), copied=copied, waiting=waiting)


async def _agreed(target: _Side, known: _Mark | None) -> str:
    """The name of the move, begun now or before. Raises OperationalError when there cannot be one."""
    there = await target.mark()
    if known is not None and there is not None and there.move == known.move:
        return known.move
    if there is not None:
        raise OperationalError(
            f"{target.name} takes part in another move, with {there.other}: finish that first, or delete the "
            f"keys there that begin with {target.prefix}"
        )
    own = [key for key in await target.keys() if not _is_trace(key.removeprefix(target.prefix.encode()))]
    if own:
        raise OperationalError(
            f"{target.name} is not empty: there are {len(own)} keys such as "
            f"{min(own).decode(errors='replace')}, and two queues cannot be made one. Take another database "
            "or namespace, or delete them"
        )
    return uuid.uuid4().hex if known is None else known.move


async def _tidy_up(source: _Side, target: _Side, done: _Mark, keys: set[bytes]) -> None:
    there = await target.mark()
    if there is not None and there.move == done.move:
        await target.remove_mark()
    elif done.other != target.name:
        raise OperationalError(
            f"{source.name} has been moved to {done.other}: name that as the target to tidy up"
        )
    await remove(source.client, keys)
    await source.remove_mark()


def _is_trace(name: bytes) -> bool:
    return name in _TRACES or name.startswith(_TRACES_OF_WORKERS)


def shown(moved: Moved, *, as_json: bool) -> str:
    """What is printed."""
    if as_json:
        return json.dumps(moved.as_json())
    if not moved.keys and not moved.waiting:
        return f"There is nothing in {moved.source}."
    return (
        f"{moved.target} has it all now: {moved.keys} keys, {moved.waiting} posts on their way. "
        f"{moved.source} is empty."
    )

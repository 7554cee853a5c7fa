"""Keys carried from one server to another, whatever their versions: value by value, and read back.

(What DUMP gives, an older server's RESTORE does not take.) Nobody else may write to either side meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from proxy.errors import OperationalError

# A redis.asyncio.Redis, whose types do not know that here all answers are bytes.
Server = Any

_PAGE: Final = 500
_AT_A_TIME: Final = 32


class _Kind(Protocol):
    """How the values of one type are read and written, a page at a time."""

    def pages(self, side: Server, key: bytes) -> AsyncIterator[Any]:
        """All of the value, in parts."""

    async def write(self, side: Server, key: bytes, page: Any) -> None:
        """Add a part to what is there."""

    async def found(self, side: Server, key: bytes, page: Any) -> Any:
        """What stands there in place of that part."""

    async def size(self, side: Server, key: bytes) -> Any:
        """How much there is, with all that is not in the parts."""


async def names_of(side: Server, prefix: str) -> set[bytes]:
    """Every key that begins with `prefix`, whose characters all stand for themselves."""
    return {key async for key in side.scan_iter(f"{prefix}*", count=1000)}


async def carry(
    source: Server, target: Server, keys: Collection[bytes], *, advance: Callable[[int], None]
) -> int:
    """Make `keys` on `target` what they are on `source`; how many were not that already.

    `advance` is told how many more are done. Raises OperationalError when what is read back differs,
    and what redis-py raises.
    """
    changed = 0
    for some in _split(sorted(keys), _AT_A_TIME):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_carried(source, target, key)) for key in some]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        changed += sum(task.result() for task in tasks)
        advance(len(some))
    return changed


async def remove(side: Server, keys: Collection[bytes]) -> None:
    """Delete `keys`."""
    for some in _split(list(keys), _PAGE):
        await side.unlink(*some)


async def _carried(source: Server, target: Server, key: bytes) -> bool:
    kind = await _kind_of(source, key)
    if await _kind_of(target, key) == kind and await _same(_KINDS[kind], source, target, key):
        return False
    await target.unlink(key)
    async for page in _KINDS[kind].pages(source, key):
        await _KINDS[kind].write(target, key, page)
    if kind == b"stream":
        await _carry_groups(source, target, key)
    if not await _same(_KINDS[kind], source, target, key):
        raise OperationalError(
            f"{key.decode(errors='replace')} is not the same on both sides: something else writes to one of "
            "them; stop it, then run feedproxy move again"
        )
    return True


async def _kind_of(side: Server, key: bytes) -> bytes:
    kind: bytes = await side.type(key)
    if kind not in _KINDS and kind != b"none":
        raise OperationalError(
            f"{key.decode(errors='replace')} is of the type {kind.decode()}, none of feedproxy's"
        )
    return kind


async def _same(kind: _Kind, source: Server, target: Server, key: bytes) -> bool:
    if await kind.size(source, key) != await kind.size(target, key):
        return False
    async for page in kind.pages(source, key):
        if await kind.found(target, key, page) != page:
            return False
    return True


class _Nothing:
    """Of a key that is not there (any more) there is nothing to carry."""

    async def pages(self, side: Server, key: bytes) -> AsyncIterator[Any]:  # noqa: ARG002
        return
        yield

    async def write(self, side: Server, key: bytes, page: Any) -> None:
        pass

    async def found(self, side: Server, key: bytes, page: Any) -> Any:
        pass

    async def size(self, side: Server, key: bytes) -> Any:
        pass


class _String:
    async def pages(self, side: Server, key: bytes) -> AsyncIterator[bytes | None]:
        yield await side.get(key)

    async def write(self, side: Server, key: bytes, page: bytes) -> None:
        await side.set(key, page)

    async def found(self, side: Server, key: bytes, page: bytes) -> bytes | None:  # noqa: ARG002
        value: bytes | None = await side.get(key)
        return value

    async def size(self, side: Server, key: bytes) -> int:
        return int(await side.strlen(key))


class _Hash:
    async def pages(self, side: Server, key: bytes) -> AsyncIterator[dict[bytes, bytes]]:
        async for page in _scanned(side.hscan, key):
            yield page

    async def write(self, side: Server, key: bytes, page: Mapping[Any, Any]) -> None:
        await side.hset(key, mapping=dict(page))

    async def found(self, side: Server, key: bytes, page: Mapping[bytes, bytes]) -> dict[bytes, Any]:
        return dict(zip(page, await side.hmget(key, list(page)), strict=True))

    async def size(self, side: Server, key: bytes) -> int:
        return int(await side.hlen(key))


class _SortedSet:
    async def pages(self, side: Server, key: bytes) -> AsyncIterator[dict[bytes, float]]:
        async for page in _scanned(side.zscan, key):
            yield dict(page)

    async def write(self, side: Server, key: bytes, page: Mapping[Any, float]) -> None:
        await side.zadd(key, dict(page))

    async def found(self, side: Server, key: bytes, page: Mapping[bytes, float]) -> dict[bytes, Any]:
        return dict(zip(page, await side.zmscore(key, list(page)), strict=True))

    async def size(self, side: Server, key: bytes) -> int:
        return int(await side.zcard(key))


class _Set:
    async def pages(self, side: Server, key: bytes) -> AsyncIterator[set[bytes]]:
        async for page in _scanned(side.sscan, key):
            yield set(page)

    async def write(self, side: Server, key: bytes, page: set[bytes]) -> None:
        await side.sadd(key, *page)

    async def found(self, side: Server, key: bytes, page: set[bytes]) -> set[bytes]:
        members = list(page)
        there = await side.smismember(key, members)
        return {member for member, is_there in zip(members, there, strict=True) if is_there}

    async def size(self, side: Server, key: bytes) -> int:
        return int(await side.scard(key))


class _List:
    """A page is where it begins, and its values."""

    async def pages(self, side: Server, key: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
        start = 0
        while values := await side.lrange(key, start, start + _PAGE - 1):
            yield start, values
            start += len(values)

    async def write(self, side: Server, key: bytes, page: tuple[int, list[bytes]]) -> None:
        await side.rpush(key, *page[1])

    async def found(self, side: Server, key: bytes, page: tuple[int, list[bytes]]) -> Any:
        start, values = page
        return start, await side.lrange(key, start, start + len(values) - 1)

    async def size(self, side: Server, key: bytes) -> int:
        return int(await side.llen(key))


class _Stream:
    """Its entries; consumer groups belong to its size."""

    async def pages(self, side: Server, key: bytes) -> AsyncIterator[list[Any]]:
        after = b"-"
        while entries := await side.xrange(key, after, "+", count=_PAGE):
            yield entries
            after = b"(" + entries[-1][0]

    async def write(self, side: Server, key: bytes, page: Sequence[tuple[bytes, dict[Any, Any]]]) -> None:
        async with side.pipeline(transaction=False) as pipe:
            for entry, fields in page:
                pipe.xadd(key, fields, id=entry)
            await pipe.execute()

    async def found(self, side: Server, key: bytes, page: Sequence[tuple[bytes, Any]]) -> list[Any]:
        entries: list[Any] = await side.xrange(key, page[0][0], page[-1][0])
        return entries

    async def size(self, side: Server, key: bytes) -> Any:
        if not await side.exists(key):
            return None
        about = await side.xinfo_stream(key)
        groups = {}
        for group in await side.xinfo_groups(key):
            pending = [
                (one["message_id"], one["consumer"]) for one in await _pending(side, key, group["name"])
            ]
            groups[group["name"]] = (group["last-delivered-id"], pending)
        return about["length"], about["last-generated-id"], groups


async def _carry_groups(source: Server, target: Server, key: bytes) -> None:
    about = await source.xinfo_stream(key)
    for group in await source.xinfo_groups(key):
        name = group["name"]
        await target.xgroup_create(key, name, id=group["last-delivered-id"], mkstream=True)
        for one in await _pending(source, key, name):
            # As long ago as there: who waits for the end of a lease has not to wait anew.
            await target.xclaim(
                key,
                name,
                one["consumer"],
                0,
                [one["message_id"]],
                idle=one["time_since_delivered"],
                retrycount=one["times_delivered"],
                force=True,
                justid=True,
            )
    if await target.exists(key):
        await target.execute_command("XSETID", key, about["last-generated-id"])


async def _pending(side: Server, key: bytes, group: bytes) -> list[dict[str, Any]]:
    """What consumers hold of what is still there."""
    pending: list[dict[str, Any]] = []
    after = "-"
    while page := await side.xpending_range(key, group, after, "+", _PAGE):
        pending += page
        after = "(" + page[-1]["message_id"].decode()
    return [one for one in pending if await side.xrange(key, one["message_id"], one["message_id"])]


async def _scanned(scan: Callable[..., Any], key: bytes) -> AsyncIterator[Any]:
    cursor = 0
    while True:
        cursor, page = await scan(key, cursor, count=_PAGE)
        if page:
            yield page
        if not int(cursor):
            return


def _split(items: Sequence[bytes], size: int) -> Iterable[Sequence[bytes]]:
    return (items[start : start + size] for start in range(0, len(items), size))


_KINDS: Final[Mapping[bytes, _Kind]] = {
    b"none": _Nothing(),
    b"string": _String(),
    b"hash": _Hash(),
    b"list": _List(),
    b"set": _Set(),
    b"zset": _SortedSet(),
    b"stream": _Stream(),
}

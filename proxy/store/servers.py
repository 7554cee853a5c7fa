"""Which server has a key: the only one, the master that Sentinels name, or a node of a cluster."""

from __future__ import annotations

import abc
import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

import redis.asyncio as redis
from pydantic import SecretStr
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from proxy.address import Address, parse_address
from proxy.clock import Clock
from proxy.store.pools import LOCAL, Node, Pools
from proxy.telemetry import get_logger

LOOK_TIMEOUT_S: Final = 0.5
# Whatever goes wrong, it is looked up no more often than this.
LOOK_GAP_S: Final = 0.1
# A master that has been replaced while it was alive does not say so for seconds; the Sentinels do.
CHECK_S: Final = 1.0
_SEEDS: Final = 5

_log = get_logger()
_T = TypeVar("_T")


class UnknownMaster(RedisConnectionError):
    """Nobody who answers knows which server to ask."""


class Servers(Protocol):
    """Which server has a key."""

    async def pool_of(self, key: str) -> redis.ConnectionPool:
        """Connections to the server that has `key`. Raises UnknownMaster."""

    def moved(self, key: str, host: str, port: int) -> bool:
        """The server that was asked says that `key` is elsewhere. Returns whether that can be."""

    def doubt(self) -> None:
        """A server did not answer, or is not what it was: look again who has what."""

    async def aclose(self) -> None:
        """Close every connection."""


def servers_of(url: SecretStr, clock: Clock, *, timeout_s: float) -> Servers:
    """What is at `url`; nothing is sent before it is needed. Raises ValueError without quoting it."""
    address = parse_address(url.get_secret_value())
    pools = Pools(address, timeout_s)
    match address.kind:
        case "server":
            return OneServer(pools, address.hosts[0] if address.hosts else LOCAL)
        case "sentinel":
            return SentinelServers(pools, Pools(address, LOOK_TIMEOUT_S, sentinels=True), address, clock)
        case "cluster":
            return ClusterServers(pools, address.hosts, clock)


class OneServer:
    """A server that has everything. Behind a name there may be another one with each new connection."""

    def __init__(self, pools: Pools, node: Node) -> None:
        self._pools = pools
        self._node = node

    async def pool_of(self, key: str) -> redis.ConnectionPool:  # noqa: ARG002  (it has all of them)
        """Connections to it."""
        return self._pools.at(self._node)

    def moved(self, key: str, host: str, port: int) -> bool:  # noqa: ARG002
        """There is no other."""
        return False

    def doubt(self) -> None:
        """There is no other."""

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pools.aclose()


class _LookedUp(abc.ABC):
    """What others have to be asked for: one look at a time, which no caller's end interrupts."""

    def __init__(self, clock: Clock, *, check_s: float | None) -> None:
        self._clock = clock
        self._check_s = check_s
        self._doubtful = True
        self._looked_at: float | None = None
        self._looking: asyncio.Task[None] | None = None

    def doubt(self) -> None:
        """The next one waits until it was looked up again."""
        self._doubtful = True

    async def _up_to_date(self) -> None:
        if self._looking is None and self._due():
            self._looking = asyncio.create_task(self._look_once(), name="store look-up")
        if self._looking is not None and self._doubtful:
            await asyncio.wait([self._looking])

    def _due(self) -> bool:
        if self._looked_at is None:
            return True
        since_s = self._clock.steady() - self._looked_at
        if self._doubtful:
            return since_s >= LOOK_GAP_S
        return self._check_s is not None and since_s >= self._check_s

    async def _look_once(self) -> None:
        try:
            await self._look()
            self._doubtful = False
        except UnknownMaster as error:
            _log.debug("store_look_up_failed", reason=str(error))
        finally:
            self._looked_at = self._clock.steady()
            self._looking = None

    async def _end_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    @abc.abstractmethod
    async def _look(self) -> None:
        """Raises UnknownMaster."""


class SentinelServers(_LookedUp):
    """The master of a name. What a Sentinel says may be old: of several, the newest counts."""

    def __init__(self, pools: Pools, sentinels: Pools, address: Address, clock: Clock) -> None:
        super().__init__(clock, check_s=CHECK_S)
        self._pools = pools
        self._sentinels = sentinels
        self._hosts = address.hosts
        self._name = address.service
        self._master: Node | None = None

    async def pool_of(self, key: str) -> redis.ConnectionPool:  # noqa: ARG002  (it has all of them)
        """Connections to the master; to the last known one while no Sentinel answers."""
        await self._up_to_date()
        if self._master is None:
            raise UnknownMaster(f"no Sentinel that answers knows a master {self._name!r}")
        return self._pools.at(self._master)

    def moved(self, key: str, host: str, port: int) -> bool:  # noqa: ARG002
        """There is no other."""
        return False

    async def aclose(self) -> None:
        """Close every connection."""
        await self._end_looking()
        await self._pools.aclose()
        await self._sentinels.aclose()

    async def _look(self) -> None:
        most = len(self._hosts) // 2 + 1
        said = await _answers(self._ask, self._hosts, enough=most)
        if not said:
            raise UnknownMaster("no Sentinel answers")
        _, master = max(said)
        if master != self._master:
            _log.info("store_master", host=master[0], port=master[1])
            self._master = master
            self._pools.keep([master])

    async def _ask(self, sentinel: Node) -> tuple[int, Node] | None:
        pool = self._sentinels.at(sentinel)
        address = await _asked(pool, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        if address is None:
            return None
        flat = await _asked(pool, "SENTINEL", "MASTER", self._name)
        state = dict(zip(flat[::2], flat[1::2], strict=True))
        return int(state[b"config-epoch"]), (address[0].decode(), int(address[1]))


class ClusterServers(_LookedUp):
    """The masters of a cluster, by slot. They tell of each change, once they are asked for what they lack."""

    def __init__(self, pools: Pools, seeds: Iterable[Node], clock: Clock) -> None:
        super().__init__(clock, check_s=None)
        self._pools = pools
        self._seeds = tuple(seeds)
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS

    async def pool_of(self, key: str) -> redis.ConnectionPool:
        """Connections to the master of the slot of `key`."""
        await self._up_to_date()
        owner = self._owners[key_slot(key.encode())]
        if owner is None:
            self.doubt()
            raise UnknownMaster("no node of the cluster that answers knows who has the key")
        return self._pools.at(owner)

    def moved(self, key: str, host: str, port: int) -> bool:
        """Take its word, and look what else has changed."""
        self._owners[key_slot(key.encode())] = (host, port)
        self.doubt()
        return True

    async def aclose(self) -> None:
        """Close every connection."""
        await self._end_looking()
        await self._pools.aclose()

    async def _look(self) -> None:
        known = {*self._seeds, *(owner for owner in self._owners if owner)}
        some = random.sample(sorted(known), min(_SEEDS, len(known)))
        said = await _answers(self._ask, some, enough=1)
        if not said:
            raise UnknownMaster("no node of the cluster answers")
        self._owners = said[0]
        self._pools.keep({*self._seeds, *(owner for owner in self._owners if owner)})

    async def _ask(self, node: Node) -> list[Node | None]:
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, master, *_ in await _asked(self._pools.at(node), "CLUSTER", "SLOTS"):
            owner = (master[0] or b"").decode() or node[0], int(master[1])
            owners[first : last + 1] = [owner] * (last + 1 - first)
        return owners


async def _asked(pool: redis.ConnectionPool, *command: str) -> Any:
    client = redis.Redis(connection_pool=pool)
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def _answers(
    ask: Callable[[Node], Awaitable[_T | None]], nodes: Iterable[Node], enough: int
) -> list[_T]:
    """What the first `enough` of `nodes` answer that know something; all of them are asked at once."""

    async def asked(node: Node) -> _T | None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await ask(node)
        except (RedisError, OSError) as error:
            _log.debug("store_look_up_failed", host=node[0], port=node[1], reason=type(error).__name__)
            return None

    answers: list[_T] = []
    tasks = [asyncio.create_task(asked(node), name="store look-up") for node in nodes]
    try:
        for task in asyncio.as_completed(tasks):
            answer = await task
            if answer is not None:
                answers.append(answer)
            if len(answers) >= enough:
                break
    finally:
        for left in tasks:
            left.cancel()
        await asyncio.wait(tasks)
    return answers

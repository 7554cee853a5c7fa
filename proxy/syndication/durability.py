"""What a 202 means: how safe the store keeps what it was given. Asked of the store once and now and then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from proxy.clock import Clock
from proxy.errors import StoreError

FSYNC: Final = "fsync"  # on disk before the answer
EVERYSEC: Final = "everysec"  # on disk within a second or two
MEMORY: Final = "memory"  # a restart of the store may forget it

ASK_AGAIN_S: Final = 60.0

# Names of settings, as in CONFIG GET (with `aof_enabled` of INFO where CONFIG is not permitted) -> values.
StoreConfig = Callable[[], Awaitable[Mapping[str, str]]]


def durability_of(config: Mapping[str, str]) -> str:
    """What the settings of a store amount to: `appendonly`, `appendfsync`; or `aof_enabled` of INFO."""
    if not (config.get("appendonly") == "yes" or config.get("aof_enabled") == "1"):
        return MEMORY
    # A service that hides its settings keeps the default of Redis. With "no" the system decides, up to 30 s.
    return {"always": FSYNC, "everysec": EVERYSEC, "no": MEMORY}.get(
        config.get("appendfsync", "everysec"), MEMORY
    )


class Durability:
    """The store's durability, as it was when last asked; the weakest while it has not been told."""

    def __init__(self, config: StoreConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._said = MEMORY
        self._asked_at: float | None = None

    async def now(self) -> str:
        """One of FSYNC, EVERYSEC and MEMORY; asks the store at most once in ASK_AGAIN_S."""
        steady = self._clock.steady()
        if self._asked_at is None or steady - self._asked_at >= ASK_AGAIN_S:
            self._asked_at = steady
            try:
                self._said = durability_of(await self._config())
            except StoreError:
                # Whoever is told of a 202 has just reached the store: it will say so the next time.
                self._asked_at = None
        return self._said

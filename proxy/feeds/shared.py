"""Level 2: answers in the shared store, so that they outlive the process and serve its siblings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Protocol

from proxy.clock import Clock
from proxy.errors import StoreError
from proxy.feeds.entry import Entry, entry_from_fields
from proxy.feeds.key import FeedKey
from proxy.store.connection import Store
from proxy.store.scripts import Script, script
from proxy.telemetry import get_logger

_LOAD: Final = script("load_entry")
_STORE: Final = script("store_entry")
_CONFIRM: Final = script("confirm_entry")

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """An answer from level 2 and its age by the store's clock, in seconds; below 0 if that stepped back."""

    entry: Entry
    age_s: float


class Write(Protocol):
    """A way to put an answer into level 2: `SharedCache.store` or `SharedCache.confirm`."""

    async def __call__(self, key: FeedKey, entry: Entry, *, arrived_at: float, keep_s: float) -> None:
        """Write `entry`, which arrived at the steady instant `arrived_at`, to stay for `keep_s` seconds."""


class SharedCache:
    """Answers by key, in Redis. Whatever goes wrong there is logged and counts as a miss."""

    def __init__(self, store: Store, clock: Clock, *, namespace: str, upstream: str) -> None:
        self._store = store
        self._clock = clock
        # Another upstream's answers are answers to other questions.
        self._prefix = f"{namespace}:feed:{hashlib.blake2b(upstream.encode(), digest_size=4).hexdigest()}:"

    @property
    def warming(self) -> bool:
        """Whether what is not found now may be found in a moment, because the store is still loading."""
        return self._store.warming

    async def load(self, key: FeedKey) -> Loaded | None:
        """The answer to `key`, None if there is none or the store does not say."""
        try:
            now_us, *flat = await self._store.run(_LOAD, [self._name(key)], [])
        except StoreError as error:
            _log.debug("shared_load_failed", reason=str(error))
            return None
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        entry = entry_from_fields(fields, key.id)
        if entry is None:
            return None
        try:
            resident_s = (int(now_us) - int(fields[b"arrived"])) / 1e6
        except (KeyError, ValueError):
            return None
        # From the future: of unknown age, which is for the caller to judge.
        return Loaded(entry, resident_s if resident_s < 0 else entry.initial_age_s + resident_s)

    async def store(self, key: FeedKey, entry: Entry, *, arrived_at: float, keep_s: float) -> None:
        """Store `entry`, which arrived at the steady instant `arrived_at`, for `keep_s` seconds."""
        pairs = [part for field in entry.to_fields().items() for part in field]
        await self._write(_STORE, key, [round(keep_s * 1000), self._since_us(arrived_at), *pairs])

    async def confirm(self, key: FeedKey, entry: Entry, *, arrived_at: float, keep_s: float) -> None:
        """Note that the upstream confirmed `entry`: its age starts anew, its bodies are not sent again."""
        fields = entry.to_fields()
        args = [round(keep_s * 1000), self._since_us(arrived_at), fields["format"], fields["hash"]]
        # Whatever is there instead, be it of another type, gives way.
        if await self._write(_CONFIRM, key, [*args, fields["meta"]]) != 1:
            await self.store(key, entry, arrived_at=arrived_at, keep_s=keep_s)

    async def _write(self, what: Script, key: FeedKey, args: list[Any]) -> Any:
        try:
            return await self._store.run(what, [self._name(key)], args)
        except StoreError as error:
            _log.debug("shared_store_failed", reason=str(error))
            return None

    def _since_us(self, arrived_at: float) -> int:
        return round(max(0.0, self._clock.steady() - arrived_at) * 1e6)

    def _name(self, key: FeedKey) -> str:
        # Each key tagged by itself: in a cluster the cache spreads over all nodes.
        return f"{self._prefix}{{{key.digest}}}"

"""A way to the store on which a chosen exchange goes wrong, for tests that go through all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from proxy.errors import StoreUnavailable
from proxy.store.queue_store import QueueStore
from proxy.store.scripts import Script


class FaultyStore:
    """Counts exchanges, and at number `at` (from 1) lets happen what `fault` says.

    - lost: the script runs, its answer is lost, and it is sent again.
    - unsent: it is lost on the way there; the store says that it is away.
    - unanswered: it runs, and the store says that it is away.
    - dies_before, dies_after: the worker dies before it is sent, or after it ran.
    """

    def __init__(self, store: QueueStore, fault: str, at: int) -> None:
        self._store = store
        self._fault = fault
        self._at = at
        self.count = 0
        self.names: list[str] = []
        self.died = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def run(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        if self.died.is_set():
            await asyncio.Event().wait()
        self.count += 1
        self.names.append(script.name)
        if self.count != self._at:
            return await self._store.run(script, key, args)
        match self._fault:
            case "lost":
                await self._store.run(script, key, args)
                return await self._store.run(script, key, args)
            case "unsent":
                raise StoreUnavailable("test: lost on the way")
            case "unanswered":
                await self._store.run(script, key, args)
                raise StoreUnavailable("test: answer lost")
            case "dies_before":
                await self._die()
            case "dies_after":
                await self._store.run(script, key, args)
                await self._die()
        raise AssertionError(self._fault)

    async def wait_for_entries(self, *args: Any) -> Any:
        """A blocking read is an exchange as well."""
        if self.died.is_set():
            await asyncio.Event().wait()
        self.count += 1
        self.names.append("read")
        if self.count != self._at:
            return await self._store.wait_for_entries(*args)
        if self._fault == "dies_before":
            await self._die()
        if self._fault == "unsent":
            raise StoreUnavailable("test: lost on the way")
        await self._store.wait_for_entries(*args)
        if self._fault == "dies_after":
            await self._die()
        raise StoreUnavailable("test: answer lost")

    async def _die(self) -> None:
        self.died.set()
        await asyncio.Event().wait()

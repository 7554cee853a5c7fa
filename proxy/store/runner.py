"""What runs scripts, as those who only run scripts see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from proxy.store.scripts import Script


class Runner(Protocol):
    """A store whose scripts may be sent twice, such as QueueStore."""

    async def run(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        """The answer of `script`. Raises StoreUnavailable or StoreRefused."""

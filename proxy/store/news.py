"""What the processes of a fleet tell each other: short texts on one channel, which may be lost.

A text is `1 <kind> <rest>`; the number is that of the format, and what is not understood is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from proxy.errors import StoreError
from proxy.telemetry import get_logger

_AGAIN_S: Final = 0.25

_log = get_logger()


class News:
    """Hears what is told on `channel` and passes it on by kind.

    Whoever subscribes is also told, with None, whenever something may have been missed.
    """

    def __init__(self, listen: Callable[[str], AsyncIterator[bytes | None]], channel: str) -> None:
        self.channel = channel
        self._listen = listen
        self._heard: dict[str, Callable[[str | None], None]] = {}
        self.standing = False

    def subscribe(self, kind: str, heard: Callable[[str | None], None]) -> None:
        """Have `heard` called with each text of `kind`, and with None after each gap."""
        self._heard[kind] = heard

    async def listen(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                async for text in self._listen(self.channel):
                    if not self.standing:
                        self.standing = True
                        self._tell_all()
                    if text is not None:
                        self._tell(text)
            except StoreError as error:
                _log.debug("news_interrupted", reason=str(error))
            finally:
                self.standing = False
            await asyncio.sleep(_AGAIN_S)

    def _tell_all(self) -> None:
        for heard in self._heard.values():
            heard(None)

    def _tell(self, text: bytes) -> None:
        version, _, rest = text.decode("utf-8", "replace").partition(" ")
        kind, _, what = rest.partition(" ")
        if version == "1" and kind in self._heard:
            try:
                self._heard[kind](what)
            except ValueError as error:
                _log.warning("news_not_understood", kind=kind, reason=str(error))

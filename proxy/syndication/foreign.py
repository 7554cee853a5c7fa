"""What strangers' bytes say, found out in a process of its own.

A page of a megabyte can hold an HTML parser for minutes, a picture of a few kilobytes unpack to gigabytes,
and decoders have had worse faults. So each is given to a child that may use so much memory and time, has no
secret in its environment, and is killed at the deadline.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.clock import Clock
from proxy.errors import OutsideRefused
from proxy.syndication.card import Card

_CHILD: Final = "proxy.syndication.foreign_child"
# Children at a time: each may use a processor and memory.
_MAX_CHILDREN: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A JPEG that is small enough for a record, with its size in pixels."""

    content: bytes
    width: int
    height: int


class ForeignReader:
    """Reads pages and pictures. Raises OutsideRefused for what cannot be read. Calls may be canceled."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free = asyncio.Semaphore(_MAX_CHILDREN)

    async def card(self, page: bytes, *, url: str, charset: str, deadline: float) -> Card:
        """What `page` says of itself; see card.read_card."""
        told, _ = await self._ask({"read": "card", "url": url, "charset": charset}, page, deadline)
        return Card(title=told["title"], description=told["description"], picture=told["picture"])

    async def picture(self, source: bytes, *, edge: int, deadline: float) -> Picture:
        """The picture in `source` as a record may have it; see picture.make_picture."""
        told, content = await self._ask({"read": "picture", "edge": edge}, source, deadline)
        return Picture(content=content, width=told["width"], height=told["height"])

    async def _ask(
        self, question: Mapping[str, Any], source: bytes, deadline: float
    ) -> tuple[dict[str, Any], bytes]:
        try:
            async with asyncio.timeout(deadline - self._clock.steady()), self._free:
                answer = await _of_child(json.dumps(question).encode() + b"\n" + source)
        except TimeoutError:
            raise OutsideRefused("takes too long to read") from None
        head, _, content = answer.partition(b"\n")
        try:
            told: dict[str, Any] = json.loads(head)
        except ValueError:
            # It was killed: by its limits, or by the kernel.
            raise OutsideRefused("takes too much time or memory to read") from None
        if "unreadable" in told:
            raise OutsideRefused(told["unreadable"])
        return told, content


async def _of_child(question: bytes) -> bytes:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        _CHILD,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )
    try:
        answer, _ = await child.communicate(question)
        return answer
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()

"""What can come of a flight, and what of it remains to be told the fleet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.errors import UpstreamError
from proxy.feeds.held import Held

# What remains to be told the fleet once those who wait in this process have been answered.
Conclude = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Filled:
    """There is an answer. `status` is the upstream's, None if nobody had to ask it.

    `followed`: another process has asked.
    """

    held: Held
    status: int | None
    followed: bool = False
    conclude: Conclude | None = None


@dataclass(frozen=True, slots=True)
class Unshared:
    """There is an answer for one asker only: `reason` forbids to store or share it."""

    held: Held
    reason: str
    conclude: Conclude | None = None


@dataclass(frozen=True, slots=True)
class Alone:
    """Another process found that answers must not be shared: there is none for us."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no answer to give in place of a stored one."""

    error: UpstreamError
    conclude: Conclude | None = None


Outcome = Filled | Unshared | Alone | Failed

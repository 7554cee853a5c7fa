"""A clock that tests move by hand."""

from __future__ import annotations

import time


class FakeClock:
    """Time stands still until told otherwise."""

    def __init__(self, wall: float = 1_795_000_000.0) -> None:
        self._steady = 1000.0
        self._wall = wall

    def steady(self) -> float:
        return self._steady

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._steady += seconds
        self._wall += seconds

    def step(self, seconds: float) -> None:
        """Set the clock on the wall, as an administrator or NTP does."""
        self._wall += seconds


class RunningClock(FakeClock):
    """Time goes on by itself, as the store's does, and is moved by hand besides."""

    def steady(self) -> float:
        return super().steady() + time.monotonic()

    def wall(self) -> float:
        return super().wall() + time.monotonic()

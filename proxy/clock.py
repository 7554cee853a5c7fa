"""Time, injected: durations from a clock that never steps, dates from the clock on the wall."""

from __future__ import annotations

import time
from typing import Protocol

# Counts on while a laptop or a virtual machine sleeps, so that a feed has aged when it wakes (Linux only).
_STEADY_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the rest of the project knows of time. Tests pass one that they move by hand."""

    def steady(self) -> float:
        """Seconds since some fixed point of this process; never steps, never goes backwards."""

    def wall(self) -> float:
        """Seconds since 1970 as the host's clock has it now; may step at any moment."""


class SystemClock:
    """The clock of the host."""

    def steady(self) -> float:
        """Seconds since boot, sleep included."""
        return time.clock_gettime(_STEADY_CLOCK)

    def wall(self) -> float:
        """Seconds since 1970 as the host has it."""
        return time.time()

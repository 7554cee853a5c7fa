"""Which processes hang: whose beat stands still while whoever looks at it is on time. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

# What beats each second has hung when it has been silent for so long.
HUNG_S: Final = 30.0
_LOOKS: Final = 6  # within that time

Who = TypeVar("Who", bound=Hashable)


class HangWatch(Generic[Who]):
    """Looks at beats every `look_s` seconds.

    A look that comes late tells of a machine that stood still, or slept, and its processes with it: silence
    counts from then on only.
    """

    def __init__(self, hung_s: float = HUNG_S) -> None:
        self._hung_s = hung_s
        self.look_s = hung_s / _LOOKS
        self._looked_at: float | None = None
        self._seen: dict[Who, tuple[int, float]] = {}  # a beat, and since when it has been the last

    def look(self, now: float, beats: Mapping[Who, int]) -> list[Who]:
        """Those of `beats` that hang at the steady instant `now`. 0 stands for one that has not begun."""
        on_time = self._looked_at is not None and now - self._looked_at < 2 * self.look_s
        before, self._looked_at = self._seen if on_time else {}, now
        self._seen = {
            who: before[who] if who in before and before[who][0] == beat else (beat, now)
            for who, beat in beats.items()
            if beat
        }
        return [who for who, (_, since) in self._seen.items() if now - since >= self._hung_s]

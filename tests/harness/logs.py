"""What a process logs, read as it comes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any


class LogFile:
    """A file to which a process logs lines of JSON, and to which others may write, too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        self._events: list[dict[str, Any]] = []

    def text(self) -> str:
        """All of it so far."""
        return self.path.read_text(encoding="utf-8")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Log events so far, of that name."""
        self._read_on()
        return [event for event in self._events if name is None or event.get("event") == name]

    def _read_on(self) -> None:
        """Take in the lines completed since the last time: tests ask often, and logs grow long."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            complete = file.read().rpartition(b"\n")
        self._read_bytes += len(complete[0]) + len(complete[1])
        for line in complete[0].splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._events.append(event)

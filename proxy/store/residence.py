"""In which store the queue of a data directory is, remembered there: so a change of settings is noticed."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from proxy.address import parse_address
from proxy.settings import Settings
from proxy.store.aof import DIRECTORY

EMBEDDED: Final = "embedded"
_RECORD: Final = "queue.json"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A store; `url` is None for the embedded one of `data_dir`."""

    url: SecretStr | None
    data_dir: Path
    memory_mb: int

    @property
    def name(self) -> str:
        """What it is called: "embedded", or its URL without a login."""
        return EMBEDDED if self.url is None else parse_address(self.url.get_secret_value()).name


def place_of(settings: Settings) -> Place:
    """The store of the settings."""
    return Place(url=settings.redis_url, data_dir=settings.data_dir, memory_mb=settings.embedded_memory_mb)


class Residence:
    """What a data directory knows of where its queue is, if there is such a directory."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._record = data_dir / _RECORD

    def known(self) -> str | None:
        """The name of the store (see Place), None if nothing tells."""
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if isinstance(record, dict) and record.get("format") == _FORMAT:
                return str(record.get("store"))
        return EMBEDDED if (self._data_dir / DIRECTORY).is_dir() else None

    def note(self, store: str) -> None:
        """It is there from now on. What cannot be written is not remembered: a Redis needs no directory."""
        fresh = self._record.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps({"format": _FORMAT, "store": store}), encoding="utf-8")
            fresh.replace(self._record)

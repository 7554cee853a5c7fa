"""The Lua scripts of the store, read from lua/ beside this file."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script that runs in the store in one step. Each says in its head what it takes and returns."""

    name: str
    text: str
    sha: str


def script(name: str) -> Script:
    """The script lua/`name`.lua."""
    text = files("proxy.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    # Redis names scripts by their SHA-1.
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())

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


def script(name: str, *, libraries: tuple[str, ...] = ()) -> Script:
    """The script lua/`name`.lua, behind the text of `libraries`, whose local functions it may then use."""
    text = "\n".join(_text(part) for part in (*libraries, name))
    # Redis names scripts by their SHA-1.
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _text(name: str) -> str:
    return files("proxy.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")

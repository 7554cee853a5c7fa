"""The Lua scripts of the store, read from lua/ beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script that runs in the store in one go. Each says in its head what it takes and returns.

    One that is a step of a larger script is called with its name, then, for each of any number of calls, with
    how many arguments there are and these; it returns an array of answers, some of which may be errors.
    """

    name: str
    text: str
    sha: str
    step: bool = False


def script(name: str, *, libraries: Sequence[str] = ()) -> Script:
    """The script lua/`name`.lua, behind the text of `libraries`, whose local functions it may then use."""
    return _script(name, "\n".join(_text(part) for part in (*libraries, name)))


def steps(
    libraries: Sequence[str], groups: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> dict[str, Script]:
    """One script of many steps, each lua/<name>.lua, behind the text of `libraries` with its local functions.

    Each group has further libraries, and the steps that use them: no call makes functions that it does not
    need, and calls of one step that are made together make them once.
    """
    parts = ["local STEP, step, at_end = ARGV[1], nil, nil", *map(_text, libraries)]
    for own_libraries, names in groups:
        parts.append(f"if {_any_of(names)} then")
        parts += map(_text, own_libraries)
        parts += [f"if STEP == '{name}' then step = function(ARGV)\n{_text(name)}\nend end" for name in names]
        parts.append("end")
    text = "\n".join((*parts, _text("each_call")))
    return {name: _script(name, text, step=True) for _, names in groups for name in names}


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(f"STEP == '{name}'" for name in names)


def _script(name: str, text: str, *, step: bool = False) -> Script:
    # Redis names scripts by their SHA-1.
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest(), step)


def _text(name: str) -> str:
    return files("proxy.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")

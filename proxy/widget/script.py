"""The widget's script: the current one, and every one that was ever released.

Pages may name a script by its hash, for ever: the files under released/ are part of every later version. The
style sheet and the words live in the script, so that one line of HTML is one request; pages that are rendered
here take them from there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
RELEASED: Final = HERE / "released"
_HASH_DIGITS: Final = 16
_STYLE = re.compile(r"\nconst STYLE = `(.*?)`;\n", re.DOTALL)
_WORDS = re.compile(r"\nconst WORDS = (\{.*?\n\});\n", re.DOTALL)
_FORMAT = re.compile(r"\nconst FORMAT = '(\w+)';")
# What no browser reads, a tenth of what is sent: comments, and what lines are indented by.
_UNREAD = re.compile(r"^ *(?://.*|/\*\*.*\*/)\n|^ +| +// [^'\"`\n]*$", re.MULTILINE)
# The same of a style sheet: blanks around what needs none.
_UNREAD_STYLE = re.compile(r"\s*([{};,])\s*|(?<=:) ")


@dataclass(frozen=True)
class Script:
    """A release of the script, and what it carries."""

    content: bytes

    @cached_property
    def hash(self) -> str:
        """What names this release: 16 hexadecimal digits of the SHA-256."""
        return hashlib.sha256(self.content).hexdigest()[:_HASH_DIGITS]

    @cached_property
    def integrity(self) -> str:
        """The value of an `integrity` attribute."""
        return f"sha384-{base64.b64encode(hashlib.sha384(self.content).digest()).decode()}"

    @cached_property
    def style(self) -> str:
        """The style sheet of the markup."""
        return self._part(_STYLE)

    @cached_property
    def words(self) -> Mapping[str, Mapping[str, str]]:
        """The words of each language, by its two letters."""
        words: dict[str, dict[str, str]] = json.loads(self._part(_WORDS))
        return words

    @cached_property
    def format(self) -> str:
        """The number of the markup's format."""
        return self._part(_FORMAT)

    def _part(self, pattern: re.Pattern[str]) -> str:
        match = pattern.search(self.content.decode())
        if match is None:
            raise ValueError(f"the script has nothing like {pattern.pattern}")
        return match[1]


def current_script() -> Script:
    """The script of this version: static/widget.js without what no browser reads."""
    source = (HERE / "static" / "widget.js").read_text(encoding="utf-8")
    read = _UNREAD.sub("", source)
    return Script(_STYLE.sub(lambda match: match[0].replace(match[1], _tight(match[1])), read).encode())


def _tight(style: str) -> str:
    return _UNREAD_STYLE.sub(lambda match: match[1] or "", style).replace(";}", "}")


def released_scripts() -> dict[str, Script]:
    """Every release by its hash, the current script among them."""
    scripts = [Script(path.read_bytes()) for path in RELEASED.glob("*.js")]
    return {script.hash: script for script in (*scripts, current_script())}

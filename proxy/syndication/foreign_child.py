"""The child of foreign.py: reads one page or picture, within limits that it sets itself, and ends.

It gets a line of JSON, the question, and the stranger's bytes; it answers with a line of JSON and, if it was
asked for one, the picture. It imports what it needs alone: it starts for each of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

_MAX_MEMORY_BYTES: Final = 1024 * 1024 * 1024
_MAX_CPU_S: Final = 20


def main() -> None:
    """Read the question, answer it."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S))
    with contextlib.suppress(OSError):
        # Where memory runs out, it is this process that goes.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    os.nice(5)
    head, _, source = sys.stdin.buffer.read().partition(b"\n")
    question = json.loads(head)
    told, content = _picture(question, source) if question["read"] == "picture" else _card(question, source)
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n" + content)


def _card(question: dict[str, Any], source: bytes) -> tuple[dict[str, Any], bytes]:
    from proxy.syndication.card import read_card  # noqa: PLC0415

    card = read_card(source, url=question["url"], charset=question["charset"])
    return {"title": card.title, "description": card.description, "picture": card.picture}, b""


def _picture(question: dict[str, Any], source: bytes) -> tuple[dict[str, Any], bytes]:
    from proxy.syndication.picture import Unreadable, make_picture  # noqa: PLC0415

    try:
        content, width, height = make_picture(source, edge=question["edge"])
    except Unreadable as error:
        return {"unreadable": str(error)}, b""
    return {"width": width, "height": height}, content


if __name__ == "__main__":
    main()

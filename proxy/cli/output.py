"""What commands print: tables for people, JSON for programs; tenants' text can do nothing in either."""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

# For what is no terminal, and has no width.
_WIDE = 200
# Joins emoji, and does nothing else.
_JOINER = "\u200d"


def inert(value: object) -> str:
    """`value` as text without what a terminal would obey: controls, escapes, changes of direction."""
    if value is None:
        return ""
    return "".join(char if char.isprintable() or char == _JOINER else "\ufffd" for char in str(value))


def show_json(document: object) -> None:
    """Print `document` as JSON in ASCII."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Print rows under the names of columns."""
    table = Table(title=inert(title) or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(inert(value)) for value in row))
    console().print(table)


def show_fields(fields: Mapping[str, object]) -> None:
    """Print names with values, one a line, those that have one."""
    for name, value in fields.items():
        if value not in (None, "", [], ()):
            show_line(f"{name}: {inert(value)}")


def show_line(text: str) -> None:
    """Print one line."""
    console().print(Text(inert(text)), soft_wrap=True)


def show_done(text: str, document: object, *, as_json: bool) -> None:
    """Print what was done, for people or for programs."""
    if as_json:
        show_json(document)
    else:
        show_line(text)


def warn(text: str) -> None:
    """Say something on stderr that is not the answer."""
    sys.stderr.write(f"feedproxy: {inert(text)}\n")


@contextlib.contextmanager
def progressing(what: str) -> Iterator[Callable[[int, int], None]]:
    """What is to be told how much is done, of how much: a bar on stderr, while a terminal watches."""
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=min(done, total), total=total)


async def counted(batches: AsyncIterator[int], total: int, what: str) -> int:
    """Go through `batches`, with a bar; how many there were in all."""
    count = 0
    with progressing(what) as told:
        async for batch in batches:
            count += batch
            told(count, total)
    return count


def console() -> Console:
    """Standard output, on which no text is taken for markup."""
    is_terminal = sys.stdout.isatty()
    return Console(markup=False, emoji=False, highlight=False, width=None if is_terminal else _WIDE)

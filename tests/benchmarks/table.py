"""Results of a run: a table to read and JSON to keep."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


def options(description: str, *, rounds: int) -> argparse.Namespace:
    """The command line of a benchmark: how many rounds, where to write JSON.

    SIGTERM from here on is an exit, so that whatever was started is ended.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"medians are of so many rounds ({rounds})"
    )
    parser.add_argument("--json", type=Path, help="write the results there as well")
    return parser.parse_args()


def machine() -> str:
    """What this was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}"


def show(title: str, rows: Sequence[Mapping[str, Any]], file: Path | None) -> None:
    """Print `rows`, which have the same columns, and write them to `file`."""
    table = Table(title=f"{title}\n{machine()}")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console(width=140 if not sys.stdout.isatty() else None).print(table)
    if file is not None:
        file.write_text(json.dumps({"title": title, "machine": machine(), "rows": list(rows)}, indent=1))


def middle(values: Sequence[float]) -> float:
    """The median."""
    return median(values)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

"""`feedproxy doctor`: what is wrong here, and what to do about it."""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import typer

from proxy.cli.jobs import AsJson

if TYPE_CHECKING:
    from proxy.ops.findings import Finding

app = typer.Typer()

_STYLES: Final = {"pass": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("fail", "bold red")}


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Look for what is wrong here, and say what to do.

    Store, clocks, servers, accounts and settings are examined.
    """
    from proxy.cli.output import progressing, show_json
    from proxy.cli.reach import loaded_settings
    from proxy.clock import SystemClock
    from proxy.examining import examine
    from proxy.ops.findings import worst

    settings = loaded_settings()
    with progressing("examining") as told:
        findings = asyncio.run(examine(settings, SystemClock(), os.environ, told))
    if as_json:
        document = [{"part": each.part, "status": each.status, "output": each.output} for each in findings]
        show_json({"status": worst(findings), "findings": document})
    else:
        _show(findings)
    if worst(findings) != "pass":
        raise typer.Exit(1)


def _show(findings: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from proxy.cli.output import console, inert, show_line

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        word, style = _STYLES[finding.status]
        table.add_row(Text(word, style), Text(inert(finding.part)), Text(inert(finding.output)))
    console().print(table)
    wrong = sum(finding.status != "pass" for finding in findings)
    show_line(f"{wrong} of {len(findings)} need you" if wrong else "all is well")

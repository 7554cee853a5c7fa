"""`feedproxy accounts …`: how accounts stand, whether they can log in, pause and resume."""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli.jobs import AsJson
from proxy.cli.reach import Desk, at_desk, known_account, loaded_settings

if TYPE_CHECKING:
    from proxy.syndication.publisher import Publisher

app = typer.Typer(help="The accounts of feedproxy.toml.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The account, as feedproxy.toml names it.")]


@app.command("list")
def list_accounts(*, as_json: AsJson = False) -> None:
    """List the accounts, and what waits for each."""
    from proxy.cli.output import show_json, show_table, warn
    from proxy.syndication.report import account_line, queue_report

    async def work(desk: Desk) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        identifiers = {name: account.identifier for name, account in desk.accounts.items()}
        overview = await desk.controls.overview(desk.accounts)
        return [account_line(each, identifiers) for each in overview.accounts], queue_report(overview)

    lines, queue = at_desk(work)
    if queue["emptied_at"]:
        warn(
            f"the store was found empty at {queue['emptied_at']}: what waited is gone, pauses too; "
            "`feedproxy pause` or `feedproxy resume` ends this warning"
        )
    if queue["paused"]:
        warn(f"everything is paused since {queue['paused_at']}; `feedproxy resume` ends that")
    if not queue["workers"]:
        warn("no worker is running")
    if as_json:
        show_json(lines)
        return
    names = ("account", "identifier", "state", "until", "waiting", "sending", "failures_in_a_row", "workers")
    columns = ("Account", "Identifier", "State", "Until", "Waiting", "Sending", "Failures", "Workers")
    show_table(columns, [[line[name] for name in names] for line in lines])


@app.command("check")
def check_accounts(
    names: Annotated[list[str] | None, typer.Argument(help="These accounts; all of them.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """See whether their servers let us in.

    An account's identity must lead to a server that takes the session, or the password if there is none.
    """
    from proxy.cli.output import progressing, show_json, show_table
    from proxy.clock import SystemClock
    from proxy.examining import Steps
    from proxy.operating.posting import operating

    settings, clock = loaded_settings(), SystemClock()
    known = [account.name for account in settings.tenants.accounts]
    wanted = [known_account(known, name) for name in names or known]

    async def work() -> list[dict[str, Any]]:
        async with operating(settings, clock, os.environ) as posts:
            with progressing("checking") as told:
                return await Steps(told).each_one(_checked(posts.publisher, name) for name in wanted)

    lines = asyncio.run(work())
    if as_json:
        show_json(lines)
    else:
        columns = ("account", "did", "pds", "trouble")
        show_table(("Account", "DID", "PDS", "Trouble"), [[line[name] for name in columns] for line in lines])
    if any(line["trouble"] for line in lines):
        raise typer.Exit(1)


async def _checked(publisher: Publisher, name: str) -> dict[str, Any]:
    from proxy.errors import PdsError

    try:
        session = await publisher.check(name)
    except PdsError as error:
        return {"account": name, "did": None, "pds": None, "trouble": str(error)}
    return {"account": name, "did": session.did, "pds": session.pds, "trouble": None}


@app.command("pause")
def pause_account(name: Name, *, as_json: AsJson = False) -> None:
    """Send nothing to an account any more, until it is resumed."""
    from proxy.cli.output import show_done

    at_desk(lambda desk: desk.controls.pause(known_account(desk.accounts, name)))
    show_done(f"{name} is paused", {"paused": name}, as_json=as_json)


@app.command("resume")
def resume_account(name: Name, *, as_json: AsJson = False) -> None:
    """End the pause of an account.

    If its breaker or a refused login has closed it, it is tried again.
    """
    from proxy.cli.output import show_done

    at_desk(lambda desk: desk.controls.resume(known_account(desk.accounts, name)))
    show_done(f"{name} is resumed", {"resumed": name}, as_json=as_json)

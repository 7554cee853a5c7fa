"""`feedproxy dead …`: what has failed for good, tried again or given up by filter."""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.jobs import MAX_LISTED, AsJson
from proxy.cli.reach import Desk, at_desk

if TYPE_CHECKING:
    from proxy.syndication.overview import DeadFilter, DeadLetter, ErrorGroup

app = typer.Typer(help="Posts that have failed for good on an account.", no_args_is_help=True)

Site = Annotated[str, typer.Option(help="Of this site.")]
Account = Annotated[str, typer.Option(help="On this account.")]
Group = Annotated[str, typer.Option(help="Of this group.")]
Reason = Annotated[str, typer.Option(help="Whose last error has this in it.")]
OlderThan = Annotated[str | None, typer.Option(help="That died longer ago: 90s, 15m, 12h, 3d.")]
NewerThan = Annotated[str | None, typer.Option(help="That died since: 90s, 15m, 12h, 3d.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command("list")
def list_dead(
    *,
    site: Site = "",
    account: Account = "",
    group: Group = "",
    reason: Reason = "",
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="So many at most.")] = 50,
    summary: Annotated[bool, typer.Option("--summary", help="Count them by account and reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest first.

    Or count them by account and reason.
    """
    wanted = _filter(site, account, group, reason, older_than, newer_than)
    if summary:
        _show_errors(at_desk(lambda desk: desk.controls.errors(wanted)), as_json=as_json)
        return

    async def work(desk: Desk) -> list[DeadLetter]:
        letters: list[DeadLetter] = []
        cursor = ""
        while True:
            page = await desk.controls.dead(wanted, cursor)
            letters += page.letters
            cursor = page.cursor
            if not cursor or len(letters) >= limit:
                return letters[:limit]

    _show_letters(at_desk(work), as_json=as_json)


@app.command("retry")
def retry_dead(
    *,
    site: Site = "",
    account: Account = "",
    group: Group = "",
    reason: Reason = "",
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Try again the dead letters that fit, the oldest first."""
    wanted = _meant(_filter(site, account, group, reason, older_than, newer_than), everything=everything)
    _handle("retry", wanted, as_json=as_json)


@app.command("drop")
def drop_dead(
    *,
    site: Site = "",
    account: Account = "",
    group: Group = "",
    reason: Reason = "",
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Give up the dead letters that fit: they end as canceled."""
    wanted = _meant(_filter(site, account, group, reason, older_than, newer_than), everything=everything)
    _handle("drop", wanted, as_json=as_json)


def _handle(what: str, wanted: DeadFilter, *, as_json: bool) -> None:
    from proxy.cli.output import counted, show_done

    async def work(desk: Desk) -> int:
        total = sum(group.count for group in await desk.controls.errors(wanted))
        batches = desk.controls.retry_dead if what == "retry" else desk.controls.drop_dead
        return await counted(batches(wanted), total, "trying again" if what == "retry" else "dropping")

    count = at_desk(work)
    if what == "retry":
        show_done(f"{count} tried again", {"retried": count}, as_json=as_json)
    else:
        show_done(f"{count} dropped", {"dropped": count}, as_json=as_json)


def _filter(
    site: str, account: str, group: str, reason: str, older_than: str | None, newer_than: str | None
) -> DeadFilter:
    from proxy.syndication.overview import DeadFilter

    now_ms = round(time.time() * 1000)
    older_ms, newer_ms = _ms("--older-than", older_than), _ms("--newer-than", newer_than)
    return DeadFilter(
        site=site,
        account=account,
        group=group,
        reason=reason,
        died_from_ms=None if newer_ms is None else now_ms - newer_ms,
        died_until_ms=None if older_ms is None else now_ms - older_ms,
    )


def _meant(wanted: DeadFilter, *, everything: bool) -> DeadFilter:
    from proxy.errors import UsageError
    from proxy.syndication.overview import DeadFilter

    if everything != (wanted == DeadFilter()):
        raise UsageError("say which dead letters are meant, by a filter, or --all without one")
    return wanted


def _ms(option: str, given: str | None) -> int | None:
    from proxy.errors import UsageError

    if given is None:
        return None
    parts = re.fullmatch(r"([0-9]{1,6})([smhd])", given)
    if parts is None:
        raise UsageError(f"{option} must be a number with s, m, h or d behind it, as in 3d")
    return int(parts[1]) * _UNITS_S[parts[2]] * 1000


def _show_letters(letters: list[DeadLetter], *, as_json: bool) -> None:
    from proxy.cli.output import show_json, show_table
    from proxy.syndication.report import dead_line

    lines = [dead_line(letter) for letter in letters]
    if as_json:
        show_json(lines)
        return
    columns = ("Job", "Account", "Site", "Post", "Group", "Died", "Attempts", "Error")
    names = ("job", "account", "site", "post", "group", "died_at", "attempts", "error")
    show_table(columns, [[line[name] for name in names] for line in lines])


def _show_errors(groups: tuple[ErrorGroup, ...], *, as_json: bool) -> None:
    from proxy.cli.output import show_json, show_table
    from proxy.syndication.report import error_lines

    lines = error_lines(groups)
    if as_json:
        show_json(lines)
        return
    names = ("account", "count", "last_at", "reason")
    show_table(("Account", "Count", "Last", "Reason"), [[line[name] for name in names] for line in lines])

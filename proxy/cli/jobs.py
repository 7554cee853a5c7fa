"""`feedproxy jobs …`: what waits, what has become of it, and why it waits."""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli.reach import Desk, at_desk

if TYPE_CHECKING:
    from proxy.syndication.desk import JobView

app = typer.Typer(help="Posts on their way to accounts.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Job = Annotated[str, typer.Argument(help="The job, as a list or the CMS's answer names it.")]
MAX_LISTED = 10_000
# Jobs of a page, where most of them may not be what is looked for.
_LOOKED_THROUGH = 500


@app.command("list")
def list_jobs(
    *,
    site: Annotated[list[str] | None, typer.Option(help="Of these sites; all of feedproxy.toml.")] = None,
    status: Annotated[str | None, typer.Option(help="As pending, partial or failed.")] = None,
    group: Annotated[str | None, typer.Option(help="Of this group.")] = None,
    account: Annotated[str | None, typer.Option(help="That go to this account.")] = None,
    callback: Annotated[
        str | None, typer.Option(help="Whose callback is so: as failed, disabled or retrying.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="So many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    from proxy.cli.output import show_json, show_table, warn
    from proxy.syndication.chain import CallbackStatus
    from proxy.syndication.job import Status
    from proxy.syndication.report import job_line

    _check("--status", status, Status)
    _check("--callback", callback, CallbackStatus)

    def fits(view: JobView) -> bool:
        told = view.job.callback.status if view.job.callback is not None else None
        return account in (None, *view.job.accounts) and callback in (None, told)

    async def work(desk: Desk) -> list[dict[str, Any]]:
        known = [each.name for each in desk.settings.tenants.sites]
        sites = site or known
        for name in set(sites) - set(known):
            # It may have been there, and its jobs still are.
            warn(f"{name!r} is no site of feedproxy.toml, which has: {', '.join(known) or 'none'}")
        if not sites:
            warn("feedproxy.toml names no site (see FEEDPROXY_CONFIG); say --site")
        at_a_time = limit if account is None and callback is None else max(limit, _LOOKED_THROUGH)
        views: list[JobView] = []
        for name in sites:
            found: list[JobView] = []
            async for page in _pages(desk, name, status, group, at_a_time):
                found += filter(fits, page)
                if len(found) >= limit:
                    break
            views += found
        views.sort(key=lambda view: view.job.created_at_ms, reverse=True)
        return [job_line(view) for view in views[:limit]]

    jobs = at_desk(work)
    if as_json:
        show_json(jobs)
        return
    show_table(
        ("Job", "Site", "Post", "Group", "Priority", "Status", "Accounts", "Callback", "Created"),
        [
            (
                *(job[name] for name in ("id", "site", "post", "group", "priority", "status")),
                ", ".join(f"{name} {shown}" for name, shown in job["accounts"].items()),
                job["callback"],
                job["created_at"],
            )
            for job in jobs
        ],
    )


def _check(option: str, given: str | None, kinds: type[StrEnum]) -> None:
    from proxy.errors import UsageError

    if given is not None and given not in tuple(kinds):
        raise UsageError(f"{option} must be one of {', '.join(kinds)}")


async def _pages(
    desk: Desk, site: str, status: str | None, group: str | None, limit: int
) -> AsyncIterator[tuple[JobView, ...]]:
    from proxy.syndication.job import Status

    wanted = Status(status) if status else None
    cursor: str | None = None
    while True:
        page = await desk.controls.jobs(site, status=wanted, group=group, cursor=cursor, limit=limit)
        yield page.jobs
        cursor = page.cursor
        if not cursor:
            return


@app.command("show")
def show_job(job: Job, *, as_json: AsJson = False) -> None:
    """Show one job, and why it waits if it does."""
    from proxy.cli.output import show_fields, show_json, show_line
    from proxy.syndication.report import job_report

    async def work(desk: Desk) -> dict[str, Any] | None:
        found = await desk.controls.job(job)
        return job_report(*found) if found is not None else None

    report = at_desk(work)
    if report is None:
        raise _unknown(job)
    if as_json:
        show_json(report)
        return
    show_fields({name: value for name, value in report.items() if name not in ("accounts", "callback")})
    for account in report["accounts"]:
        _show_account(account)
    if (callback := report["callback"]) is not None:
        show_line("")
        show_line(f"callback: {callback['status']}")
        names = ("attempts", "next_attempt_at", "delivered_at", "error")
        show_fields({f"  {name}": callback[name] for name in names})


def _show_account(account: dict[str, Any]) -> None:
    from proxy.cli.output import show_fields, show_line

    show_line("")
    deleting = account["action"] == "delete" and account["status"] != "deleted"
    show_line(f"{account['account']}: {account['status']}{' (deletion)' if deleting else ''}")
    for cause in account["waiting_for"]:
        until = f", until {cause['until']}" if cause["until"] else ""
        show_line(f"  waits ({cause['code']}): {cause['sentence']}{until}")
    names = ("uri", "attempts", "error", "degraded", "position")
    show_fields({f"  {name}": account[name] for name in names})
    for failure in account["history"]:
        show_line(f"  failed at {failure['at']}: {failure['reason']}")


@app.command("retry")
def retry_job(job: Job, *, as_json: AsJson = False) -> None:
    """Try again what has failed of a job, its callback too."""

    async def work(desk: Desk) -> tuple[JobView | None, bool]:
        from proxy.syndication.shown import is_stuck, is_untold

        if (before := await desk.controls.job(job)) is None:
            return None, False
        view = before[0]
        stuck = is_untold(view) or any(is_stuck(view, each) for each in view.deliveries)
        return (await desk.controls.retry(job) if stuck else view), stuck

    view, done = at_desk(work)
    wrong = "nothing of it has failed or waits for credentials, nor has its callback failed"
    _tell(job, view, done=done, wrong=wrong, as_json=as_json)


@app.command("cancel")
def cancel_job(job: Job, *, as_json: AsJson = False) -> None:
    """Cancel what has not been sent of a job."""

    async def work(desk: Desk) -> tuple[JobView | None, bool]:
        from proxy.syndication.job import Status

        view = await desk.controls.cancel(job)
        withdrawn = view is not None and any(
            each.shown is Status.CANCELED or each.after for each in view.deliveries
        )
        return view, withdrawn

    view, done = at_desk(work)
    _tell(job, view, done=done, wrong="each account of it is done", as_json=as_json)


def _tell(job: str, view: JobView | None, *, done: bool, wrong: str, as_json: bool) -> None:
    from proxy.cli.output import show_done
    from proxy.errors import OperationalError
    from proxy.syndication.report import job_line

    if view is None:
        raise _unknown(job)
    if not done:
        raise OperationalError(f"{view.job.id}: {wrong}")
    line = job_line(view)
    states = ", ".join(f"{name} {shown}" for name, shown in line["accounts"].items())
    show_done(f"{line['id']}: {states}", line, as_json=as_json)


def _unknown(job: str) -> Exception:
    from proxy.cli.output import inert
    from proxy.errors import OperationalError

    return OperationalError(f"there is no job {inert(job)!r}")

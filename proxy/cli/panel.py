"""What `feedproxy top` shows of a picture (see ops.watch): text and bars, in which nothing is obeyed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proxy.cli.output import inert

_BAR: Final = 30
_MB: Final = 1024 * 1024
_STATUS_STYLES: Final = {"warn": "yellow", "fail": "bold red"}
# A terminal has few lines; `doctor` and /health have all of it.
_MOST_FINDINGS, _MOST_ACCOUNTS = 5, 12
# Where it has fewer, each finding has one; where there is hardly room for the numbers, each of these.
_FEW_LINES, _HARDLY_ANY_LINES = 30, 16


def panel(picture: Mapping[str, Any], *, at: str, lines: int = _FEW_LINES) -> RenderableType:
    """Everything, the most urgent first. `at` is the time of day, `lines` is how many the terminal has."""
    rows = [*_reads(picture), *_upstream(picture["upstream"]), *_hosts(picture["hosts"])]
    if picture["queue"] is not None:
        rows.append(("queue", *_queue(picture["queue"])))
    title = _text("feedproxy top", "bold") + _text(f"  {at}  rates of {picture['window_s']:.0f} s")
    parts: list[RenderableType] = [title, *_findings(picture["findings"], cut=lines < _FEW_LINES)]
    if lines < _HARDLY_ANY_LINES:
        return Group(*parts, _compact(rows, picture["accounts"]))
    parts += [_text(), _grid(rows)]
    if picture["accounts"]:
        parts += [_text(), _accounts(picture["accounts"])]
    return Group(*parts)


_Row = tuple[str, Text | ProgressBar, Text]


def _grid(rows: Sequence[_Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(min_width=_BAR)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _compact(rows: Sequence[_Row], accounts: Sequence[Mapping[str, Any]]) -> Table:
    """The same in a line each, in words alone."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True, min_width=len("hit ratio"))
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, shown, said in rows:
        if name != "breaker" or shown.style:  # which is closed, unless it stands out
            table.add_row(name, said if isinstance(shown, ProgressBar) else _text(" ").join([shown, said]))
    for account in accounts:
        state = f"{account['waiting']} waiting, {account['closed'] or 'open'}"
        table.add_row("account", _text(f"{account['account']}: {state}"))
    return table


def _findings(findings: Sequence[Mapping[str, Any]], *, cut: bool) -> Iterator[Text]:
    for finding in findings[:_MOST_FINDINGS]:
        style = _STATUS_STYLES.get(finding["status"], "")
        text = _text(f"{finding['part']}: ", style) + _text(finding["output"])
        if cut:
            text.no_wrap, text.overflow = True, "ellipsis"
        yield text
    if len(findings) > _MOST_FINDINGS:
        yield _text(f"and {len(findings) - _MOST_FINDINGS} more: see /health", "yellow")


def _reads(picture: Mapping[str, Any]) -> Iterator[_Row]:
    reads = picture["reads"]
    outcomes = [f"{name} {rate:.1f}" for name, rate in reads["by_outcome_per_s"].items() if rate]
    yield (
        "reads",
        _text(f"{reads['per_s']:.1f}/s"),
        _text(" · ".join([*outcomes, f"{reads['total']} in all"])),
    )
    ratio = reads["hit_ratio"]
    if ratio is None:
        yield "hit ratio", _text("-"), _text("nobody reads")
    else:
        yield (
            "hit ratio",
            _bar(ratio, 1),
            _text(f"{ratio:.1%} from copies, {reads['waiting']} wait for others"),
        )


def _upstream(upstream: Mapping[str, Any]) -> Iterator[_Row]:
    said = [f"{upstream['per_s']:.1f} of {upstream['limit_per_s']:g}/s"]
    said += [f"{status} {rate:.1f}" for status, rate in upstream["by_status_per_s"].items()]
    said += [f"{upstream['retries_per_s']:.1f} retries", f"{upstream['refused_per_s']:.1f} refused"]
    yield (
        "upstream",
        _bar(upstream["per_s"], upstream["limit_per_s"]),
        _text(" · ".join([*said, f"{upstream['wait_s']:.2f} s wait"])),
    )
    breaker = upstream["breaker"] or "-"
    left = f", for {upstream['closed_for_s']:.0f} s" if upstream["closed_for_s"] else ""
    yield "breaker", _text(f"{breaker}{left}", "" if breaker in ("closed", "-") else "yellow"), _text()


def _hosts(hosts: Sequence[Mapping[str, Any]]) -> Iterator[_Row]:
    for host in hosts:
        name = host["url"]
        if host["trouble"] is not None:
            yield "host", _text(name), _text(host["trouble"], "red")
            continue
        processes = " · ".join(f"{count} {role}" for role, count in host["processes"].items() if count)
        memory = f"{host['memory_bytes'] / _MB:.0f} of {host['memory_limit_bytes'] / _MB:.0f} MB"
        said = f"{processes} · {host['connections']} connections · {memory} held"
        yield "host", _text(name), _text(said)
        if host["pool"]:
            busy = _text(f"{host['busy']} of {host['pool']} at work")
            yield "workers", _bar(host["busy"], host["pool"]), busy


def _queue(queue: Mapping[str, Any]) -> tuple[Text, Text]:
    states = " · ".join(f"{queue[name]} {name}" for name in ("ready", "active", "delayed", "parked", "dead"))
    late = f" · the oldest is {queue['late_s']:.0f} s late" if queue["late_s"] >= 1 else ""
    return _text(f"{queue['workers']} workers alive"), _text(states + late)


def _accounts(accounts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("Account", "Waiting", "State"):
        table.add_column(column, overflow="fold")
    for account in accounts[:_MOST_ACCOUNTS]:
        closed = account["closed"]
        state = _text(closed, "yellow") if closed else _text("open")
        table.add_row(_text(account["account"]), _text(str(account["waiting"])), state)
    if len(accounts) > _MOST_ACCOUNTS:
        table.add_row(_text(f"and {len(accounts) - _MOST_ACCOUNTS} more"), _text(), _text())
    return table


def _bar(value: float, total: float) -> ProgressBar:
    return ProgressBar(total=total or 1, completed=min(value, total or 1), width=_BAR)


def _text(shown: object = "", style: str = "") -> Text:
    """Hosts may say anything: text comes on the screen in this way only."""
    return Text(inert(shown), style)

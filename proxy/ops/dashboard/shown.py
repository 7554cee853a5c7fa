"""What the dashboard is told: one JSON document on how everything stands. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.ops.dashboard.history import Rates
from proxy.ops.findings import findings_of, worst
from proxy.ops.report import ReadReport, Report
from proxy.syndication.overview import Overview
from proxy.syndication.report import account_line, queue_report
from proxy.tally import Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that is shown at one instant.

    `overview` is None while the queue does not tell. `identifiers` are those of accounts by name, `sites`
    the names of sites. `budget_per_s` is the fleet's, for requests to the upstream. `steps` are what the
    viewer has not seen yet of the last hour.
    """

    version: str
    host: str
    report: Report
    overview: Overview | None
    identifiers: Mapping[str, str]
    sites: Sequence[str]
    budget_per_s: float
    lately: Rates
    steps: Iterable[Rates]


def document_of(scene: Scene) -> dict[str, Any]:
    """The document. Instants are in seconds since 1970, rates a second; `steps` are rows of numbers."""
    report = scene.report
    findings = findings_of(report)
    return {
        "version": scene.version,
        "host": scene.host,
        "at": report.at,
        "status": worst(findings),
        "findings": [
            {"part": finding.part, "status": finding.status, "output": finding.output}
            for finding in findings
            if finding.status != "pass"
        ],
        "reads": _reads(report.totals, scene.lately),
        "upstream": None if report.read is None else _upstream(report.read, report.totals, scene),
        "queue": _queue(report, scene.overview),
        "accounts": _accounts(scene),
        "sites": list(scene.sites),
        "steps": [_row(step) for step in scene.steps],
    }


def _reads(totals: Totals, lately: Rates) -> dict[str, Any]:
    return {
        "per_s": _rounded(lately.reads),
        "hit_ratio": _rounded(lately.hit_ratio),
        "total": totals.sum("feedproxy_requests"),
        "waiting": totals.sum("feedproxy_followers"),
        "connections": totals.sum("feedproxy_connections"),
        "memory_bytes": totals.sum("feedproxy_memory_bytes"),
        "memory_limit_bytes": totals.sum("feedproxy_memory_limit_bytes"),
        "entries": totals.sum("feedproxy_memory_entries"),
        "processes": totals.sum("feedproxy_processes"),
    }


def _upstream(read: ReadReport, totals: Totals, scene: Scene) -> dict[str, Any]:
    return {
        "breaker": read.phase.value,
        "closed_for_s": _rounded(read.closed_for_s),
        "per_s": _rounded(scene.lately.upstream),
        "budget_per_s": scene.budget_per_s,
        "total": totals.sum("feedproxy_upstream_requests"),
        "retries": totals.sum("feedproxy_upstream_retries"),
        "refusals": totals.sum("feedproxy_limiter_refusals"),
        "flights": totals.sum("feedproxy_flights"),
        "store": read.store.state,
    }


def _queue(report: Report, overview: Overview | None) -> dict[str, Any] | None:
    standing = report.posts.standing
    if standing is None or overview is None:
        return None
    states = ("ready", "active", "delayed", "parked", "dead", "done", "late_s", "workers")
    return {
        **{state: getattr(standing, state) for state in states},
        **queue_report(overview),
        "pool_busy": report.totals.sum("feedproxy_pool_busy"),
        "pool_size": report.totals.sum("feedproxy_pool_size"),
    }


def _accounts(scene: Scene) -> list[dict[str, Any]] | None:
    if scene.overview is None:
        return None
    return [account_line(account, scene.identifiers) for account in scene.overview.accounts]


def _row(step: Rates) -> list[float | None]:
    numbers = (step.reads, step.hit_ratio, step.upstream, step.published, step.failed)
    return [round(step.at, 1), *map(_rounded, numbers)]


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)

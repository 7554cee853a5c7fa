"""What operators are shown of jobs, dead letters and accounts, as JSON documents. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from proxy.syndication.desk import JobView
from proxy.syndication.explain import why_waiting
from proxy.syndication.job import Delivery, Job, job_status
from proxy.syndication.overview import AccountOverview, DeadLetter, ErrorGroup, Overview
from proxy.syndication.shown import address_of, callback_shown
from proxy.syntax import instant_text


def job_line(view: JobView) -> dict[str, Any]:
    """A job in a list."""
    job = view.job
    return {
        "id": job.id,
        "site": job.site,
        "post": job.post,
        "group": job.group or None,
        "priority": job.priority,
        "status": job_status(delivery.shown for delivery in view.deliveries),
        "created_at": instant(job.created_at_ms),
        "callback": job.callback.status if job.callback is not None else None,
        "accounts": {delivery.account: _standing(delivery) for delivery in view.deliveries},
    }


def job_report(view: JobView, overview: Overview) -> dict[str, Any]:
    """A job with all that is known of it, and why it waits if it does."""
    callback = callback_shown(view.job)
    return {
        **job_line(view),
        "revision": view.job.revision,
        "finished_at": instant(view.job.finished_at_ms),
        "accounts": [_delivery(view.job, delivery, overview) for delivery in view.deliveries],
        "callback": callback.model_dump(mode="json") if callback is not None else None,
    }


def dead_line(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter in a list."""
    return {
        "job": letter.job,
        "account": letter.account,
        "site": letter.site,
        "post": letter.post,
        "group": letter.group or None,
        "died_at": instant(letter.died_at_ms),
        "attempts": letter.attempts,
        "error": letter.error,
    }


def error_lines(groups: Sequence[ErrorGroup]) -> list[dict[str, Any]]:
    """Dead letters, counted by account and reason."""
    return [
        {
            "account": group.account,
            "reason": group.reason,
            "count": group.count,
            "last_at": instant(group.last_at_ms),
        }
        for group in groups
    ]


def account_line(overview: AccountOverview, identifiers: Mapping[str, str]) -> dict[str, Any]:
    """An account in a list; `identifiers` are those of feedproxy.toml by name."""
    return {
        "account": overview.account,
        "identifier": identifiers.get(overview.account),
        "state": _state(overview),
        "until": instant(overview.gate_until_ms),
        "waiting": overview.waiting,
        "sending": overview.active.partition(":")[0] or None,
        "failures_in_a_row": overview.failures,
        "workers": overview.workers,
    }


def queue_report(overview: Overview) -> dict[str, Any]:
    """How the whole queue stands."""
    return {
        "paused": overview.paused,
        "paused_at": instant(overview.paused_at_ms),
        "emptied_at": instant(overview.emptied_at_ms),
        "workers": overview.workers,
    }


def instant(at_ms: int) -> str | None:
    """An instant in ms since 1970 as text; None for none, and for what a person ends."""
    return instant_text(datetime.fromtimestamp(at_ms / 1000, UTC)) if at_ms > 0 else None


def _state(overview: AccountOverview) -> str:
    if overview.paused:
        return "paused"
    return overview.gate_reason or "open"


def _standing(delivery: Delivery) -> str:
    return "deleted" if delivery.is_deleted else delivery.shown


def _delivery(job: Job, delivery: Delivery, overview: Overview) -> dict[str, Any]:
    account = next((each for each in overview.accounts if each.account == delivery.account), None)
    place = account.place if account is not None else -1
    return {
        "account": delivery.account,
        "status": _standing(delivery),
        "state": delivery.state,
        "action": delivery.action,
        "did": delivery.did or None,
        "uri": address_of(job, delivery, delivery.did) or None,
        "attempts": delivery.attempts,
        "error": delivery.error or None,
        "history": [{"at": instant(each.at_ms), "reason": each.reason} for each in delivery.history],
        "degraded": list(delivery.degraded),
        "position": place + 1 if place >= 0 else None,
        "waiting_for": [
            {"code": cause.code, "until": instant(cause.until_ms), "sentence": cause.sentence}
            for cause in why_waiting(delivery, overview)
        ],
    }

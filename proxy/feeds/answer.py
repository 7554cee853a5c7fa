"""What a question gets, and how that follows from what a flight has brought."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from proxy.errors import UpstreamError, UpstreamUnavailable
from proxy.feeds.held import Held
from proxy.feeds.outcome import Alone, Failed, Filled, Outcome, Unshared

# Why the upstream was asked (RFC 9211 §2.2).
Fwd = Literal["uri-miss", "stale"]


class Served(enum.Enum):
    """Where an answer comes from."""

    HIT = "hit"
    STALE_WHILE_REVALIDATE = "stale-while-revalidate"
    STALE_IF_ERROR = "stale-if-error"
    FORWARDED = "forwarded"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a question gets: a `held` answer, or an `error` where there is none; and how it came about.

    `fwd` is why the upstream was asked (RFC 9211 §2.2), `fwd_status` what it said, `collapsed` that another
    request had asked already.
    """

    served: Served
    held: Held | None = None
    error: UpstreamError | None = None
    fwd: Fwd | None = None
    fwd_status: int | None = None
    stored: bool = False
    collapsed: bool = False
    detail: str | None = None


def answered(outcome: Outcome, *, started: bool, fwd: Fwd, fallback: Held | None) -> Answer | None:
    """What someone who waited for `outcome` is told, whose request has `started` the flight or joined it.

    `fallback` is the copy there is. None if the outcome is for another: this one has to ask for itself.
    """
    match outcome:
        case Filled(held, None):
            return Answer(served=Served.HIT, held=held)
        case Filled(held, status, followed):
            return Answer(
                served=Served.FORWARDED,
                held=held,
                fwd=fwd,
                fwd_status=status,
                stored=True,
                collapsed=followed or not started,
            )
        case Unshared(held, reason) if started:
            return Answer(
                served=Served.FORWARDED, held=held, fwd=fwd, fwd_status=held.entry.status, detail=reason
            )
        case Unshared() | Alone():
            return None
        case Failed(error):
            return failed(error, collapsed=not started) if fallback is None else stale(fallback, error)


def stale(held: Held, trouble: UpstreamError) -> Answer:
    """The copy `held`, since there is `trouble` with the upstream."""
    return Answer(served=Served.STALE_IF_ERROR, held=held, fwd_status=trouble.upstream_status)


def failed(
    error: UpstreamError,
    *,
    collapsed: bool = False,
    retry_after_s: float | None = None,
    detail: str | None = None,
) -> Answer:
    """There is nothing to answer with because of `error`; it is told to come back in `retry_after_s`."""
    refused_here = isinstance(error, UpstreamUnavailable) and error.upstream_status is None
    forwarded = detail is None and not refused_here
    return Answer(
        served=Served.ERROR,
        error=error.bare(retry_after_s),
        fwd="uri-miss" if forwarded else None,
        fwd_status=error.upstream_status if forwarded else None,
        collapsed=collapsed and forwarded,
        detail=detail,
    )

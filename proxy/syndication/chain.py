"""The steps of a job's chain that are no deliveries: its errands, and what is told of its callback. Pure.

enrich -> publish, once for each account -> notify. See store/lua/queue_errand.lua for how they follow.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# The store goes on without what was not found 15 s after the start, see queue_errand.lua: whoever looks for
# it says before that what there is.
ENRICH_S: Final = 14.0
# Of the errand itself, should a fault of ours end the first. What is fetched has attempts of its own.
ENRICH_ATTEMPTS: Final = 2
ENRICH_PAUSE_S: Final = 1.0
# Pauses between the attempts to tell of a job's end; shortened by up to a fifth at random. A day in all: what
# is over is kept for a day at least.
NOTIFY_DELAYS_S: Final = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 28_800)


class ErrandKind(enum.StrEnum):
    """What an errand is for."""

    ENRICH = "enrich"
    NOTIFY = "notify"


class CallbackStatus(enum.StrEnum):
    """How far the callback of a job is."""

    WAITING = "waiting"  # for the job's end
    PENDING = "pending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    FAILED = "failed"
    DISABLED = "disabled"  # the address has answered that nobody wants to be told there


class CallbackOutcome(enum.StrEnum):
    """How an attempt to tell went."""

    DELIVERED = "delivered"
    RETRYING = "retrying"
    FAILED = "failed"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """What is told of a job's notifications. `number` counts the job's ends, from 1 with the first.

    `at_ms`: when it was delivered, or will be tried again; since 1970, 0 is none.
    """

    number: int = 0
    status: CallbackStatus = CallbackStatus.WAITING
    attempts: int = 0
    at_ms: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One step as stored. `url` and `number` are those of a notification."""

    kind: ErrandKind
    job: str
    site: str
    failures: int = 0
    url: str = ""
    number: int = 0


def is_errand(name: str) -> bool:
    """Whether what is leased under that name is an errand; else it is a delivery."""
    return "::" in name


def errand_from_fields(name: str, fields: Mapping[bytes, bytes]) -> Errand | None:
    """The errand `name` that the hash `fields` describes; None if it is damaged."""
    try:
        return Errand(
            kind=ErrandKind(name.partition("::")[2].partition(":")[0]),
            job=fields[b"job"].decode(),
            site=fields[b"site"].decode(),
            failures=int(fields.get(b"failures", 0)),
            url=fields.get(b"url", b"").decode(),
            number=int(fields.get(b"number", 0)),
        )
    except (KeyError, ValueError):
        return None


def callback_from_words(text: str) -> Callback:
    """What the words say that a job keeps of its callback. Raises ValueError when they are damaged."""
    number, *rest = text.split(" ", 4)
    if not rest:
        return Callback(number=int(number or 0))
    status, attempts, at_ms, error = (*rest, "", "", "")[:4]
    return Callback(
        number=int(number),
        status=CallbackStatus(status),
        attempts=int(attempts or 0),
        at_ms=int(at_ms or 0),
        error=error,
    )


def notification_id(job: str, number: int) -> str:
    """The `webhook-id` of a job's `number`th end: the same in each attempt to tell of it."""
    return f"msg_{job.removeprefix('job_')}_{number}"


def notify_delay_s(failures: int, draw: float) -> float | None:
    """Seconds before the next attempt after `failures` (from 1); None when none is left. `draw` in [0, 1)."""
    if not 1 <= failures <= len(NOTIFY_DELAYS_S):
        return None
    return NOTIFY_DELAYS_S[failures - 1] * (1 - draw / 5)

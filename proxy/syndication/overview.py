"""How the queue and its accounts stand, and what has died, as plain values. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOverview:
    """How an account stands in the queue. Instants in ms since 1970; 0 is "none"."""

    account: str
    paused: bool
    gate_reason: str  # why it is closed; empty while it is open
    gate_until_ms: int  # -1: until a person acts
    pace_until_ms: int  # until when its server asked not to be asked
    failures: int  # in a row, of its server
    broken: bool  # its breaker has opened, and no attempt has succeeded since
    active: str  # the delivery that is under way, or empty
    worker: str  # who has it
    workers: int  # alive, and able to serve it
    waiting: int  # ready deliveries
    place: int  # of the delivery asked for, from 0; -1 if it is not ready, or none was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How the queue stands at `now_ms` of the store's clock."""

    now_ms: int
    paused: bool  # everything
    paused_at_ms: int
    emptied_at_ms: int  # when it was noticed that the store had lost everything; 0 once somebody has acted
    workers: int
    accounts: tuple[AccountOverview, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """Which dead letters are meant; empty and None mean any. `reason` is a part of the last error."""

    site: str = ""
    account: str = ""
    group: str = ""
    reason: str = ""
    died_from_ms: int | None = None
    died_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that has failed for good."""

    job: str
    account: str
    site: str
    post: str
    group: str
    error: str
    attempts: int
    died_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """How many dead letters an account has for one reason, and when the last of them died."""

    account: str
    reason: str
    count: int
    last_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadPage:
    """Part of the dead letters, the newest first; `cursor` is "" at the end."""

    letters: tuple[DeadLetter, ...]
    cursor: str


def overview_from(text: bytes) -> Overview:
    """What queue_accounts answers."""
    document = json.loads(text)
    # An empty table of Lua is an object.
    accounts = document["accounts"] or []
    return Overview(
        now_ms=int(document["now_ms"]),
        paused=bool(document["paused"]),
        paused_at_ms=int(document["paused_at_ms"]),
        emptied_at_ms=int(document["emptied_at_ms"]),
        workers=int(document["workers"]),
        accounts=tuple(map(_account_from, accounts)),
    )


def dead_letter_from(text: bytes) -> DeadLetter:
    """One line of a list of queue_dead."""
    fields = json.loads(text)
    return DeadLetter(
        **(fields | {"attempts": int(fields["attempts"]), "died_at_ms": int(fields["died_at_ms"])})
    )


def merged_errors(counts: Sequence[bytes]) -> tuple[ErrorGroup, ...]:
    """What queue_dead has counted batch by batch, as one list with the most frequent first."""
    groups: dict[tuple[str, str], ErrorGroup] = {}
    for text in counts:
        fields = json.loads(text)
        key = (fields["account"], fields["reason"])
        before = groups.get(key)
        groups[key] = ErrorGroup(
            account=key[0],
            reason=key[1],
            count=int(fields["count"]) + (before.count if before else 0),
            last_at_ms=max(int(fields["last_at_ms"]), before.last_at_ms if before else 0),
        )
    return tuple(sorted(groups.values(), key=lambda group: (-group.count, group.account, group.reason)))


def _account_from(fields: Mapping[str, Any]) -> AccountOverview:
    return AccountOverview(
        account=fields["account"],
        paused=bool(fields["paused"]),
        gate_reason=fields["gate_reason"],
        gate_until_ms=int(fields["gate_until_ms"]) if fields["gate_reason"] else 0,
        pace_until_ms=int(fields["pace_until_ms"]),
        failures=int(fields["failures"]),
        broken=bool(fields["broken"]),
        active=fields["active"],
        worker=fields["worker"],
        workers=int(fields["workers"]),
        waiting=int(fields["waiting"]),
        place=int(fields["place"]),
    )

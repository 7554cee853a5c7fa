"""How the queue stands, as its script tells it. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountStanding:
    """An account that has posts waiting, or is closed.

    `closed` says why: paused, breaker, credentials, or in other words what it waits for; empty if it is open.
    It opens by itself in `opens_in_s`, None if somebody has to open it. `unknown_s` is for how long no worker
    has known it.
    """

    name: str
    waiting: int
    closed: str
    opens_in_s: float | None
    unknown_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStanding:
    """Deliveries by state (`parked`: ready, of a closed account), and what tells whether they flow.

    `errands` are what has to be done before and after them: pages to be read, callbacks to be delivered.

    `late_s` is for how long the oldest has waited that could have gone out; `dead_lately` are the dead
    letters of the last hour, `done` the jobs that are over and still kept, `workers` those that are alive.
    """

    ready: int
    active: int
    delayed: int
    parked: int
    errands: int
    dead: int
    done: int
    dead_lately: int
    late_s: float
    workers: int
    accounts: tuple[AccountStanding, ...]

    @property
    def live(self) -> int:
        """What is to come to an end yet."""
        return self.ready + self.active + self.delayed + self.parked + self.errands


def standing_from(text: bytes) -> QueueStanding:
    """What queue_standing answers."""
    told = json.loads(text)
    # An empty table of Lua is an object or an array, as it happens.
    accounts = [
        AccountStanding(
            name=each["name"],
            waiting=each["waiting"],
            closed=each["closed"],
            opens_in_s=None if each["opens_in_ms"] < 0 else each["opens_in_ms"] / 1000,
            unknown_s=each["unknown_ms"] / 1000,
        )
        for each in told["accounts"] or ()
    ]
    return QueueStanding(
        **{name: told[name] for name in ("ready", "active", "delayed", "parked", "errands", "dead", "done")},
        dead_lately=told["dead_lately"],
        late_s=max(0, told["late_ms"]) / 1000,
        workers=told["workers"],
        accounts=tuple(accounts),
    )

"""How everything stands: one value with all numbers, for health, metrics and whoever shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from proxy.resilience.breaker import Phase
from proxy.syndication.standing import QueueStanding
from proxy.tally import Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """The store as the read path finds it; `detail` says what it refuses.

    `about` is what it says of itself, see store.persistence; None while that is not known.
    """

    state: Literal["up", "loading", "away", "refusing"]
    detail: str = ""
    about: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReport:
    """The read path of this process. `unshared`: questions whose answers the upstream forbids to store.

    `limit_per_s` is the budget of requests to the upstream: the fleet's, or without the store this process's.
    """

    store: StoreReport
    phase: Phase
    closed_for_s: float
    limit_per_s: float
    unshared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PostReport:
    """The write path. `standing` is None while the queue does not tell, and `trouble` says why.

    `durability` is what a 202 means, as far as the store tells.
    `accounts` are those of feedproxy.toml, `missing` sentences on secrets that are not there.
    """

    standing: QueueStanding | None
    trouble: str
    about: Mapping[str, str] | None
    durability: str
    accounts: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How everything stands, as one process of a host sees it. `at` is in seconds since 1970.

    `totals` are of all processes of the host; `read` is None in a worker. `incidents` have befallen the data
    of the embedded store. `expected` is how many web processes the host is to have.
    """

    at: float
    role: Literal["web", "worker"]
    totals: Totals
    read: ReadReport | None
    posts: PostReport
    incidents: tuple[str, ...] = ()
    expected: int = 1

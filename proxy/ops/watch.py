"""From what hosts say of themselves, again and again, to what is going on: rates, bars, findings. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from proxy.resilience.breaker import Phase

# Rates are those of so many seconds: long enough to be steady, short enough to show a change.
WINDOW_S: Final = 10.0

# What was answered from a copy.
_FROM_COPIES: Final = ("hit", "stale", "negative")
_STATES: Final = ("ready", "active", "delayed", "parked", "dead", "done")
# The worse, the further back.
_PHASES: Final = tuple(phase.value for phase in (Phase.CLOSED, Phase.HALF_OPEN, Phase.OPEN))

_Labels = frozenset[tuple[str, str]]


class Numbers:
    """What a host's /metrics says, as text. Raises ValueError for a text that is something else."""

    def __init__(self, text: str) -> None:
        self._series: dict[str, dict[_Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._series.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
        if "feedproxy_build_info" not in self._series:
            raise ValueError("no numbers of a feedproxy")

    def series(self, name: str) -> Mapping[_Labels, float]:
        """The values of a metric, by labels; none of one that is not told."""
        return self._series.get(name, {})

    def sum(self, name: str) -> float:
        """Of all values of a metric."""
        return sum(self.series(name).values())

    def by(self, label: str, name: str) -> dict[str, float]:
        """The values of a metric that has `label`, summed for each of its values."""
        return _summed(self.series(name).items(), label)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a host said at the steady instant `at`. `checks` are those of its /health."""

    at: float
    numbers: Numbers
    checks: Mapping[str, Any]


@dataclass(slots=True)
class Host:
    """One host as it is watched. `trouble` says why it tells nothing now: then nothing is shown of it."""

    url: str
    trouble: str = "not asked yet"
    samples: deque[Sample] = field(default_factory=deque)

    def told(self, sample: Sample) -> None:
        """It answered."""
        self.trouble = ""
        self.samples.append(sample)
        while len(self.samples) > 2 and sample.at - self.samples[0].at > WINDOW_S:
            self.samples.popleft()

    def failed(self, trouble: str) -> None:
        """It did not."""
        self.trouble = trouble
        self.samples.clear()

    @property
    def now(self) -> Numbers:
        """Its last numbers."""
        return self.samples[-1].numbers

    def growth(self, name: str) -> Iterator[tuple[_Labels, float]]:
        """What each value of a counter grew by a second. One that is less than it was began anew."""
        first, last = self.samples[0], self.samples[-1]
        before = first.numbers.series(name)
        if last.at > first.at:
            for labels, value in last.numbers.series(name).items():
                grown = value - before.get(labels, 0.0)
                yield labels, (grown if grown >= 0 else value) / (last.at - first.at)


def picture(hosts: Sequence[Host]) -> dict[str, Any]:
    """What is going on, as a document: of all hosts together what is theirs, else as the first one says."""
    telling = [host for host in hosts if host.samples]
    return {
        "hosts": [_host(host) for host in hosts],
        "window_s": max((host.samples[-1].at - host.samples[0].at for host in telling), default=0.0),
        "reads": _reads(telling),
        "upstream": _upstream(telling),
        "attempts_per_s": _rates(telling, "feedproxy_attempts_total", "outcome"),
        "queue": next(filter(None, map(_queue, telling)), None),
        "accounts": _accounts(telling),
        "findings": _findings(telling),
    }


def _host(host: Host) -> dict[str, Any]:
    if not host.samples:
        return {"url": host.url, "trouble": host.trouble}
    now = host.now
    return {
        "url": host.url,
        "trouble": None,
        "processes": {role: int(count) for role, count in now.by("role", "feedproxy_processes").items()},
        "busy": int(now.sum("feedproxy_pool_busy")),
        "pool": int(now.sum("feedproxy_pool_size")),
        "connections": int(now.sum("feedproxy_connections")),
        "memory_bytes": int(now.sum("feedproxy_memory_bytes")),
        "memory_limit_bytes": int(now.sum("feedproxy_memory_limit_bytes")),
    }


def _reads(hosts: Sequence[Host]) -> dict[str, Any]:
    by_outcome = _rates(hosts, "feedproxy_requests_total", "outcome")
    per_s = sum(by_outcome.values())
    from_copies = sum(by_outcome.get(outcome, 0.0) for outcome in _FROM_COPIES)
    return {
        "total": int(sum(host.now.sum("feedproxy_requests_total") for host in hosts)),
        "per_s": per_s,
        "hit_ratio": from_copies / per_s if per_s else None,
        "by_outcome_per_s": by_outcome,
        "waiting": int(sum(host.now.sum("feedproxy_followers") for host in hosts)),
    }


def _upstream(hosts: Sequence[Host]) -> dict[str, Any]:
    by_status = _rates(hosts, "feedproxy_upstream_requests_total", "status")
    turns_per_s = _rate(hosts, "feedproxy_limiter_wait_seconds_count")
    waited_s_per_s = _rate(hosts, "feedproxy_limiter_wait_seconds_sum")
    phases = {
        state
        for host in hosts
        for state, present in host.now.by("state", "feedproxy_upstream_breaker").items()
        if present
    }
    return {
        "per_s": sum(by_status.values()),
        "limit_per_s": max(
            (host.now.sum("feedproxy_upstream_limit_per_second") for host in hosts), default=0.0
        ),
        "by_status_per_s": {status: rate for status, rate in by_status.items() if rate},
        "retries_per_s": _rate(hosts, "feedproxy_upstream_retries_total"),
        "refused_per_s": _rate(hosts, "feedproxy_limiter_refusals_total"),
        "wait_s": waited_s_per_s / turns_per_s if turns_per_s else 0.0,
        "breaker": next((phase for phase in reversed(_PHASES) if phase in phases), None),
        "closed_for_s": max(
            (host.now.sum("feedproxy_upstream_closed_seconds") for host in hosts), default=0.0
        ),
    }


def _queue(host: Host) -> dict[str, Any] | None:
    states = host.now.by("state", "feedproxy_jobs")
    if not states:
        return None
    return {
        **{state: int(states.get(state, 0)) for state in _STATES},
        "dead_lately": int(host.now.sum("feedproxy_dead_letters_lately")),
        "late_s": host.now.sum("feedproxy_jobs_late_seconds"),
        "workers": int(host.now.sum("feedproxy_workers")),
    }


def _accounts(hosts: Sequence[Host]) -> list[dict[str, Any]]:
    """Each host knows those of its feedproxy.toml."""
    known: dict[str, dict[str, Any]] = {}
    for host in hosts:
        closed = {
            dict(labels)["account"]: dict(labels)["reason"]
            for labels, value in host.now.series("feedproxy_account_closed").items()
            if value
        }
        for name, waiting in host.now.by("account", "feedproxy_account_waiting_jobs").items():
            known.setdefault(name, {"account": name, "waiting": int(waiting), "closed": closed.get(name)})
    return sorted(
        known.values(), key=lambda each: (each["closed"] is None, -each["waiting"], each["account"])
    )


def _findings(hosts: Sequence[Host]) -> list[dict[str, Any]]:
    """What is not well; once what several hosts say in the same words."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for host in hosts:
        for part, checks in host.samples[-1].checks.items():
            for check in checks:
                if check["status"] != "pass":
                    said = (part, check["status"], check.get("output", ""))
                    found.setdefault(said, []).append(host.url)
    return [
        {"part": part, "status": status, "output": output, "hosts": urls}
        for (part, status, output), urls in found.items()
    ]


def _most(hosts: Iterable[Host], name: str) -> float:
    return max((host.now.sum(name) for host in hosts), default=0.0)


def _rate(hosts: Iterable[Host], name: str) -> float:
    return sum(rate for host in hosts for _, rate in host.growth(name))


def _rates(hosts: Iterable[Host], name: str, label: str) -> dict[str, float]:
    return _summed((pair for host in hosts for pair in host.growth(name)), label)


def _summed(pairs: Iterable[tuple[_Labels, float]], label: str) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for labels, value in pairs:
        sums[dict(labels)[label]] += value
    return dict(sums)

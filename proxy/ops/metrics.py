"""A report as Prometheus reads it. Imported when it is first asked for: what it imports takes its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from proxy.ops.families import FAMILIES
from proxy.ops.report import PostReport, ReadReport, Report
from proxy.resilience.breaker import Phase
from proxy.syndication.standing import QueueStanding
from proxy.tally import Family, Totals
from proxy.version import VERSION

_CLOSED: Final = ("breaker", "credentials", "paused")


def exposition(report: Report, accept: str) -> tuple[bytes, str]:
    """The report in the form that the Accept header likes best, and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(report))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Collector:
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Every number of the report."""
        report = self._report
        for family in FAMILIES:
            if family.kind == "histogram":
                yield _histogram(family, report.totals)
            else:
                yield _numbers(family, report.totals)
        yield _gauge("feedproxy_build_info", "The version that answers.", {(VERSION,): 1}, "version")
        if report.read is not None:
            yield from _of_reads(report.read)
        yield from _of_posts(report.posts)
        if report.posts.standing is not None:
            yield from _of_queue(report.posts.standing, frozenset(report.posts.accounts))


def _numbers(family: Family, totals: Totals) -> Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=tuple(family.labels))
    for labels, value in totals.numbers[family.name].items():
        # Most of the methods are never asked for.
        if "method" not in family.labels or totals.sum(family.name, labels[0]):
            metric.add_metric(labels, value)
    return metric


def _histogram(family: Family, totals: Totals) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=tuple(family.labels))
    bounds = [*map(str, family.buckets), "+Inf"]
    for labels, histogram in totals.histograms[family.name].items():
        metric.add_metric(labels, list(zip(bounds, histogram.counts, strict=True)), histogram.sum_s)
    return metric


def _of_reads(read: ReadReport) -> Iterator[Metric]:
    yield _gauge(
        "feedproxy_upstream_breaker",
        "The state of the read upstream's breaker: 1 for the present one.",
        {(phase.value,): phase is read.phase for phase in Phase},
        "state",
    )
    yield _gauge(
        "feedproxy_upstream_closed_seconds",
        "For how long nobody asks the read upstream, by its breaker or its own wish.",
        {(): read.closed_for_s},
    )
    yield _gauge(
        "feedproxy_upstream_limit_per_second",
        "Requests a second that all hosts may make to the read upstream; without Redis, this process.",
        {(): read.limit_per_s},
    )
    yield _gauge(
        "feedproxy_unshared_questions",
        "Questions whose answers the upstream forbids to store.",
        {(): read.unshared},
    )
    yield _gauge(
        "feedproxy_cache_store_up",
        "Whether Redis serves the cache.",
        {(): read.store.state == "up"},
    )
    if read.store.about is not None:
        yield from _of_memory("feedproxy_cache_store", "the cache", read.store.about)


def _of_posts(posts: PostReport) -> Iterator[Metric]:
    yield _gauge(
        "feedproxy_queue_store_up", "Whether Redis answers for the queue.", {(): posts.standing is not None}
    )
    if posts.about is not None:
        yield from _of_memory("feedproxy_queue_store", "the queue", posts.about)


def _of_memory(prefix: str, what: str, about: Mapping[str, str]) -> Iterator[Metric]:
    used, limit = about.get("used_memory"), about.get("maxmemory")
    if used is not None:
        yield _gauge(f"{prefix}_used_bytes", f"Memory of the Redis of {what}.", {(): float(used)})
    if policy := about.get("maxmemory_policy"):
        yield _gauge(
            f"{prefix}_evicts",
            f"Whether the Redis of {what} makes room by itself when that is full, and not by refusing.",
            {(): policy != "noeviction"},
        )
    if limit is not None:
        yield _gauge(
            f"{prefix}_limit_bytes", f"maxmemory of the Redis of {what}; 0: none.", {(): float(limit)}
        )


def _of_queue(standing: QueueStanding, own: frozenset[str]) -> Iterator[Metric]:
    states = ("ready", "active", "delayed", "parked", "dead", "done")
    yield _gauge(
        "feedproxy_jobs",
        "Posts on their way to one account each, by state; done: posts that are over and still kept.",
        {(state,): getattr(standing, state) for state in states},
        "state",
    )
    yield _gauge(
        "feedproxy_errands",
        "What is to be done before and after posts: pages to be read, callbacks to be delivered.",
        {(): standing.errands},
    )
    yield _gauge(
        "feedproxy_jobs_late_seconds",
        "For how long the oldest post has waited that could have gone out.",
        {(): standing.late_s},
    )
    yield _gauge(
        "feedproxy_dead_letters_lately",
        "Posts that failed for good in the last hour.",
        {(): standing.dead_lately},
    )
    yield _gauge("feedproxy_workers", "Workers alive, of all hosts.", {(): standing.workers})
    # Only those of feedproxy.toml: names that come from elsewhere may be any number.
    accounts = [account for account in standing.accounts if account.name in own]
    yield _gauge(
        "feedproxy_account_waiting_jobs",
        "Posts that wait for the account.",
        {(name,): 0 for name in sorted(own)} | {(account.name,): account.waiting for account in accounts},
        "account",
    )
    why = {account.name: account.closed for account in accounts if account.closed}
    reasons = {name: reason if reason in _CLOSED else "other" for name, reason in why.items()}
    yield _gauge(
        "feedproxy_account_closed",
        "Whether nothing goes out to the account, by the reason.",
        {
            (name, reason): reasons.get(name) == reason
            for name in sorted(own)
            for reason in (*_CLOSED, "other")
        },
        "account",
        "reason",
    )


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for own, value in values.items():
        metric.add_metric(own, float(value))
    return metric

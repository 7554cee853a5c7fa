"""What is counted: every number that processes keep for /metrics. Pure."""

from __future__ import annotations

from typing import Final

from proxy.feeds.counting import OUTCOMES
from proxy.feeds.methods import METHODS
from proxy.instruments import STATUSES
from proxy.resilience.counting import CAUSES
from proxy.syndication.chain import CallbackOutcome
from proxy.syndication.counting import ATTEMPTS
from proxy.syndication.slots import MAX_HOSTS
from proxy.tally import OTHER, Family, Layout

_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

FAMILIES: Final = (
    Family(
        name="feedproxy_requests",
        kind="counter",
        help="Reads answered, by XRPC method and by what became of them.",
        labels={"method": (*METHODS, OTHER), "outcome": OUTCOMES},
    ),
    Family(
        name="feedproxy_request_seconds",
        kind="histogram",
        help="Time to the answer of a read; without hits that were answered below ASGI, within microseconds.",
        labels={"outcome": OUTCOMES},
        buckets=_FAST,
    ),
    Family(
        name="feedproxy_upstream_requests",
        kind="counter",
        help="Requests to the read upstream, by what it answered.",
        labels={"status": STATUSES},
    ),
    Family(
        name="feedproxy_upstream_request_seconds",
        kind="histogram",
        help="Time to the head of an answer of the read upstream.",
        buckets=_FAST,
    ),
    Family(
        name="feedproxy_upstream_retries",
        kind="counter",
        help="Requests to the read upstream that repeat a failed one.",
    ),
    Family(
        name="feedproxy_upstream_backoff_seconds",
        kind="counter",
        help="Time spent asleep before such repetitions.",
    ),
    Family(
        name="feedproxy_limiter_wait_seconds",
        kind="histogram",
        help="Time that requests to the read upstream waited for their turn.",
        buckets=_FAST,
    ),
    Family(
        name="feedproxy_limiter_refusals",
        kind="counter",
        help="Requests to the read upstream that were not made: for want of budget, because the client had "
        "its share, or while the breaker or the upstream's own wish keeps all from asking.",
        labels={"cause": CAUSES},
    ),
    Family(
        name="feedproxy_flights_started",
        kind="counter",
        help="Questions for which this host looked up or asked, once for all who asked at the same time.",
    ),
    Family(name="feedproxy_flights", kind="gauge", help="Questions under way."),
    Family(name="feedproxy_followers", kind="gauge", help="Requests that wait for a question under way."),
    Family(name="feedproxy_memory_bytes", kind="gauge", help="Answers held in the processes' memory."),
    Family(name="feedproxy_memory_limit_bytes", kind="gauge", help="Room for them (MEMORY_MB)."),
    Family(name="feedproxy_memory_entries", kind="gauge", help="How many they are."),
    Family(name="feedproxy_connections", kind="gauge", help="Client connections."),
    Family(
        name="feedproxy_pds_requests",
        kind="counter",
        help="Requests to PDSs and directories, by what they answered.",
        labels={"status": STATUSES},
    ),
    Family(
        name="feedproxy_pds_request_seconds",
        kind="histogram",
        help="Time to the head of an answer of a PDS or directory.",
        buckets=_SLOW,
    ),
    Family(
        name="feedproxy_attempts",
        kind="counter",
        help="Attempts of workers to bring a post to an account, by how they ended.",
        labels={"outcome": ATTEMPTS},
    ),
    Family(
        name="feedproxy_attempt_seconds",
        kind="histogram",
        help="How long those attempts took.",
        buckets=_SLOW,
    ),
    Family(
        name="feedproxy_callbacks",
        kind="counter",
        help="Attempts to tell a CMS of a job's end, by how they ended; failed: the last one.",
        labels={"outcome": tuple(CallbackOutcome)},
    ),
    Family(name="feedproxy_pool_size", kind="gauge", help="Posts that this host's workers may work on."),
    Family(
        name="feedproxy_pool_host_limit",
        kind="gauge",
        help="Posts at a time that a worker sends to a PDS host; other: the fewest of all the rest.",
        labels={"host": ()},
        found=MAX_HOSTS,
    ),
    Family(name="feedproxy_pool_busy", kind="gauge", help="Posts that they work on."),
    Family(
        name="feedproxy_processes",
        kind="gauge",
        help="Processes of this host.",
        labels={"role": ("web", "worker")},
    ),
)

LAYOUT: Final = Layout(FAMILIES)

"""What is wrong, and what to do about it: from a report to findings. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from proxy.ops.report import PostReport, ReadReport, Report
from proxy.resilience.breaker import Phase
from proxy.syndication.standing import AccountStanding, QueueStanding

# Longer than the schedule of retries: what waits longer is late.
LATE_S: Final = 600.0
UNKNOWN_S: Final = 3600.0
# So many accounts are named in one sentence.
_NAMED: Final = 5

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one part, and for a person what is wrong with it and what to do.

    `observed` is the number that decides, with its `unit`, if there is one.
    """

    part: str
    status: Status
    output: str = ""
    observed: float | None = None
    unit: str = ""


def worst(findings: Sequence[Finding]) -> Status:
    """The state of the whole."""
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"


def findings_of(report: Report) -> list[Finding]:
    """A finding for each part, those that are well included."""
    found = [*_of_incidents(report.incidents)]
    if report.role == "web":
        found.append(_of_processes(report))
    if report.read is not None:
        found += [_of_store(report.read), _of_upstream(report.read), _of_storability(report.read)]
    return [*found, *findings_of_posts(report.posts, is_worker=report.role == "worker")]


def _of_incidents(incidents: Sequence[str]) -> Iterator[Finding]:
    if incidents:
        yield Finding(
            "store_data",
            "warn",
            "Stored data was damaged and has been cut back to what is sound. Check the disk; delete the "
            "copy of the damaged files once it is of no more use. This warning ends with the next start. "
            + " | ".join(incidents),
        )


def _of_processes(report: Report) -> Finding:
    there = report.totals.sum("feedproxy_processes", "web")
    if there >= report.expected:
        return Finding("processes", "pass", "", there, "processes")
    return Finding(
        "processes",
        "warn",
        f"{there:.0f} of {report.expected} web processes of this host are at work. One that died is started "
        "again, one that hangs is ended first, after 30 s; the log says why (process_died, child_hung).",
        there,
        "processes",
    )


def _of_store(read: ReadReport) -> Finding:
    match read.store.state:
        case "up":
            return Finding("store", "pass")
        case "loading":
            return Finding(
                "store",
                "warn",
                "Redis is loading its data: feeds are served from memory alone until it has. Nothing to do.",
            )
        case "away":
            return Finding(
                "store",
                "warn",
                "Redis does not answer in time: feeds are served from memory alone, and each process keeps "
                "to its own part of the budget. See that it runs, is reachable and not overloaded.",
            )
        case "refusing":
            return Finding(
                "store",
                "warn",
                f"Redis refuses ({read.store.detail}): feeds are not kept over a restart. See its memory "
                "and disk, and whether it is a replica.",
            )


def _of_upstream(read: ReadReport) -> Finding:
    if read.phase is Phase.CLOSED:
        return Finding("upstream", "pass")
    return Finding(
        "upstream",
        "warn",
        "The upstream has been failing; stored copies are served, and it is tried again by itself. "
        "See FEEDPROXY_UPSTREAM and the network if this lasts.",
        read.closed_for_s,
        "s",
    )


def _of_storability(read: ReadReport) -> Finding:
    if not read.unshared:
        return Finding("storability", "pass")
    return Finding(
        "storability",
        "warn",
        "The upstream forbids to store some answers (no-store, private or Vary): each of their "
        "readers costs a request. See what stands between this host and the upstream.",
        read.unshared,
        "questions",
    )


def findings_of_posts(posts: PostReport, *, is_worker: bool = False) -> Iterator[Finding]:
    """Those of the write path. Where there is no account and no post, there is nothing to be warned of."""
    if posts.missing:
        yield Finding(
            "secrets",
            "warn",
            "Secrets of feedproxy.toml are missing here; set them and send SIGHUP: "
            + " | ".join(posts.missing),
        )
    standing = posts.standing
    if standing is None:
        yield Finding(
            "queue",
            "fail" if is_worker else "warn",
            f"The queue does not answer ({posts.trouble}): posts wait, and new ones are tried at once or "
            "refused with 503. See that Redis runs, is reachable, and has memory and disk to write to.",
        )
    else:
        in_use = bool(posts.accounts) or standing.live > 0
        yield _of_queue(standing)
        yield _of_workers(standing, in_use=in_use)
        yield _of_dead(standing)
        yield from _of_accounts(standing.accounts)
    if posts.accounts or (standing is not None and standing.live):
        if posts.about is not None:
            yield _of_durability(posts.about, posts.durability)
            yield _of_eviction(posts.about)
        elif standing is not None:
            yield _UNTOLD


def _of_queue(standing: QueueStanding) -> Finding:
    if standing.late_s < LATE_S:
        return Finding("queue", "pass", "", standing.late_s, "s")
    return Finding(
        "queue",
        "warn",
        f"The oldest post that could have gone out has waited for {standing.late_s / 60:.0f} minutes. See "
        "whether workers run and what they log; more posts than the PDS's rate allows wait as well "
        "(FEEDPROXY_PDS_RPS).",
        standing.late_s,
        "s",
    )


def _of_workers(standing: QueueStanding, *, in_use: bool) -> Finding:
    if standing.workers or not in_use:
        return Finding("workers", "pass", "", standing.workers, "workers")
    return Finding(
        "workers",
        "warn",
        f"No worker is alive, and {standing.live} posts wait. `serve` restarts its own, see its log; where "
        "you run a Redis, start `feedproxy worker`.",
        standing.workers,
        "workers",
    )


def _of_dead(standing: QueueStanding) -> Finding:
    if not standing.dead_lately:
        return Finding("dead_letters", "pass", "", standing.dead, "posts")
    return Finding(
        "dead_letters",
        "warn",
        f"{standing.dead_lately} posts failed for good in the last hour, {standing.dead} in all. The jobs "
        "say why (GET /syndicate?status=failed); retry them once that is cured.",
        standing.dead_lately,
        "posts",
    )


def _of_accounts(accounts: Sequence[AccountStanding]) -> Iterator[Finding]:
    closed = {name: [a for a in accounts if a.closed == name] for name in ("credentials", "breaker")}
    unknown = [account for account in accounts if account.unknown_s >= UNKNOWN_S]
    texts = []
    if closed["credentials"]:
        texts.append(
            f"The login of {_names(closed['credentials'])} was refused: put a new app password where "
            "feedproxy.toml points and send SIGHUP to the workers, or retry a post to try it once more."
        )
    if closed["breaker"]:
        texts.append(
            f"The PDS of {_names(closed['breaker'])} has been failing: posts wait and it is tried again "
            "by itself. See whether the PDS is up and lets the account log in, if this lasts."
        )
    if unknown:
        texts.append(
            f"No worker knows {_names(unknown)}, whose posts wait: add the account to feedproxy.toml of a "
            "worker, with its password, or cancel the posts."
        )
    if texts:
        yield Finding("accounts", "warn", " ".join(texts))
    else:
        yield Finding("accounts", "pass")


_UNTOLD: Final = Finding(
    "durability",
    "warn",
    "Redis answers, and does not tell whether it keeps posts on disk or may drop them. Permit INFO to its "
    "user (ACL SETUSER … +info), or see to its append-only file and maxmemory-policy yourself.",
)


def _of_durability(about: Mapping[str, str], durability: str) -> Finding:
    if refusal := _refusal_of(about):
        return Finding("durability", "warn", refusal)
    if durability == "memory":
        return Finding(
            "durability",
            "warn",
            "Redis keeps posts in memory alone: a restart forgets those that wait. Set appendonly yes and "
            "appendfsync everysec (or always).",
        )
    return Finding("durability", "pass")


def _refusal_of(about: Mapping[str, str]) -> str:
    """Why Redis takes no posts although it answers; empty if it takes them."""
    if about.get("aof_last_write_status", "ok") != "ok":
        return (
            "Redis cannot write its append-only file and takes no posts: its disk is full or broken. Make "
            "room on it; Redis goes on by itself."
        )
    if about.get("role") == "slave":
        return (
            "Redis is a replica and takes no posts. Name its master in FEEDPROXY_REDIS_URL, or its "
            "Sentinels, which know who that is; or make it the master."
        )
    used, limit = int(about.get("used_memory", 0)), int(about.get("maxmemory", 0))
    if limit and used >= limit and about.get("maxmemory_policy") == "noeviction":
        return (
            "The memory of Redis is full, and it takes no posts. Raise its maxmemory, shorten "
            "FEEDPROXY_DONE_RETENTION_DAYS, or give the cache a Redis of its own (FEEDPROXY_CACHE_REDIS_URL)."
        )
    if about.get("rdb_last_bgsave_status", "ok") != "ok":
        return (
            "Redis could not write its last snapshot and, unless told otherwise, takes no posts until it "
            "can: its disk is full or broken. Make room on it, then send it BGSAVE."
        )
    return ""


def _of_eviction(about: Mapping[str, str]) -> Finding:
    if not about.get("maxmemory_policy", "").startswith("allkeys"):
        return Finding("eviction", "pass")
    return Finding(
        "eviction",
        "warn",
        f"Redis may drop posts that wait when its memory is full (maxmemory-policy "
        f"{about['maxmemory_policy']}). Set volatile-lru or noeviction, or give the cache a Redis of its own "
        "(FEEDPROXY_CACHE_REDIS_URL).",
    )


def _names(accounts: Sequence[AccountStanding]) -> str:
    named = ", ".join(account.name for account in accounts[:_NAMED])
    more = len(accounts) - _NAMED
    return f"{named} and {more} more" if more > 0 else named

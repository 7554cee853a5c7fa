"""What a look from this host tells: clocks, servers, accounts; from answers to findings. Pure."""

from __future__ import annotations

from typing import Final

from proxy.ops.findings import Finding
from proxy.resilience.points import Points

# Ages and pauses are right to within so much.
_SKEW_S: Final = 2.0
# The HTTP date has whole seconds.
DATE_STEP_S: Final = 1.0
_FEW_POINTS: Final = 0.1


def of_clock(part: str, whose: str, ahead_s: float, unsure_s: float) -> Finding:
    """`whose` clock is ahead of this host's by so much, give or take `unsure_s`."""
    if abs(ahead_s) - unsure_s <= _SKEW_S:
        return Finding(part, "pass", "", ahead_s, "s")
    return Finding(
        part,
        "warn",
        f"The clock of {whose} is {abs(ahead_s):.0f} s "
        f"{'ahead of' if ahead_s > 0 else 'behind'} this host's: "
        "ages, schedules and pauses are off by that. Keep both in step by NTP (see timedatectl).",
        ahead_s,
        "s",
    )


def of_upstream(url: str, status: int, *, is_xrpc: bool, wait_s: float | None) -> Finding:
    """What the read upstream at `url` answered to a question that it knows or knows not."""
    if status == 429:
        until = f" for {wait_s:.0f} s" if wait_s else ""
        return Finding(
            "upstream",
            "warn",
            f"{url} asks this address to wait{until}: stored copies are served meanwhile. Lower "
            "FEEDPROXY_UPSTREAM_RPS if this happens often, and set FEEDPROXY_CONTACT.",
        )
    if is_xrpc and status in (200, 400):
        return Finding("upstream", "pass")
    return Finding(
        "upstream",
        "warn",
        f"{url} answered {status}{'' if is_xrpc else ', and not as an AppView does'}. See "
        "FEEDPROXY_UPSTREAM, and what stands between it and this host.",
    )


def of_server(part: str, url: str, trouble: str, setting: str) -> Finding:
    """A server that gave no answer, where `setting` says to ask it; it is there if there is no trouble."""
    if not trouble:
        return Finding(part, "pass")
    return Finding(
        part,
        "warn",
        f"{url} cannot be used from here: {trouble}. See {setting}, name resolution, and whether this host "
        "may connect there (a firewall; environment proxies are not used).",
    )


def of_account(name: str, points: Points | None) -> Finding:
    """An account that its PDS lets in, with what it may still write."""
    part = f"account {name}"
    if points is None:
        return Finding(part, "pass", "its server tells no limits")
    left = f"{points.remaining} of {points.limit} points are left for {points.resets_in_s:.0f} s"
    if points.remaining >= points.limit * _FEW_POINTS:
        return Finding(part, "pass", left, points.remaining, "points")
    return Finding(
        part,
        "warn",
        f"{left}: when none are left, its posts wait until then. Nothing to do if this passes; else see who "
        "else writes with this account, and lower posts_per_hour of its sites.",
        points.remaining,
        "points",
    )


def of_untried(name: str, trouble: str) -> Finding:
    """An account of which nothing is known, since sessions lie in a store that does not answer."""
    return Finding(
        f"account {name}",
        "warn",
        f"Its login was not tried: {trouble}. Sessions lie in Redis; run this again when that answers.",
    )


def of_refused(name: str, trouble: str) -> Finding:
    """An account that cannot be used."""
    return Finding(
        f"account {name}",
        "warn",
        f"{trouble}. See its identifier and service in feedproxy.toml, and its app password; after a change "
        f"send SIGHUP to serve and workers, and `feedproxy accounts resume {name}`.",
    )

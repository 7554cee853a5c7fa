"""Settings that are sound each by itself, and contradict each other or the purpose. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from proxy.clients import IpNetwork, address_of, is_own
from proxy.listeners import serves_anything_to_anyone
from proxy.ops.findings import Finding
from proxy.settings import Settings

_DAY_S: Final = 86_400.0
# Redis holds back writes for up to two seconds while its disk takes its time over an fsync.
_SHORTEST_LEASE_S: Final = 5.0
# Four answers of the largest kind, with their compressed forms.
_LEAST_MEMORY_MB: Final = 16


def contradictions(settings: Settings) -> list[Finding]:
    """A finding for each, or one that there are none."""
    found = [
        Finding("settings", "warn", text)
        for part in (_of_reach, _of_clients, _of_lifetimes, _of_upstream, _of_posts)
        for text in part(settings)
    ]
    return found or [Finding("settings", "pass")]


def _of_reach(settings: Settings) -> Iterator[str]:
    if serves_anything_to_anyone(settings, settings.host):
        yield (
            "FEEDPROXY_ACTORS is unset and others than this host can reach us: anybody may spend the "
            "upstream's budget on any feed. Name your accounts and feeds in it."
        )
    if settings.ops_listen is not None and not _is_private(settings.ops_listen.rpartition(":")[0]):
        yield (
            f"FEEDPROXY_OPS_LISTEN is {settings.ops_listen}: whoever reaches it sees health and metrics in "
            "full, without a token. Have it listen on 127.0.0.1 or an address of a private network."
        )
    behind_tls = settings.public_url is not None and settings.public_url.startswith("https:")
    if behind_tls and not settings.trusted_proxies and not _is_loopback(settings.host):
        yield (
            "FEEDPROXY_PUBLIC_URL is https, so that a TLS server stands before us, and "
            "FEEDPROXY_TRUSTED_PROXIES is unset: all readers behind it are one client to our limits. Name "
            "its addresses there, or set FEEDPROXY_HOST to 127.0.0.1 if it is on this host."
        )
    secret = settings.admin_token is not None or bool(settings.tenants.sites)
    if (
        settings.public_url is not None
        and not behind_tls
        and secret
        and not _is_private_url(settings.public_url)
    ):
        yield (
            "FEEDPROXY_PUBLIC_URL is http: tokens of sites and of the operator cross the net for all to "
            "read. Put a TLS server before us, and say https."
        )


def _of_clients(settings: Settings) -> Iterator[str]:
    if any(map(_is_everybody, settings.trusted_proxies)):
        yield (
            "FEEDPROXY_TRUSTED_PROXIES has everybody in it: any client may say in X-Forwarded-For that it is "
            "another, and no limit holds. Name the addresses of your proxies alone."
        )
    if any(map(_is_everybody, settings.client_exempt)):
        yield (
            "FEEDPROXY_CLIENT_EXEMPT has everybody in it: FEEDPROXY_CLIENT_MISSES_PER_MIN limits nobody. "
            "Name your own networks alone."
        )
    if settings.client_misses_per_min >= settings.upstream_rps * 60:
        yield (
            f"FEEDPROXY_CLIENT_MISSES_PER_MIN ({settings.client_misses_per_min}) is as much as "
            f"FEEDPROXY_UPSTREAM_RPS ({settings.upstream_rps:g}) gives all in a minute: one client may take "
            "everything. Lower the one or raise the other."
        )


def _of_lifetimes(settings: Settings) -> Iterator[str]:
    if settings.memory_mb < _LEAST_MEMORY_MB:
        yield (
            f"FEEDPROXY_MEMORY_MB is {settings.memory_mb}: a few large answers push everything else out, and "
            f"most questions go to Redis. Give it {_LEAST_MEMORY_MB} or more."
        )
    if settings.client_max_age > settings.cache_ttl:
        yield (
            f"FEEDPROXY_CLIENT_MAX_AGE ({settings.client_max_age:g}) is above FEEDPROXY_CACHE_TTL "
            f"({settings.cache_ttl:g}): browsers keep what we have long replaced. Lower it."
        )
    if settings.negative_ttl > settings.cache_ttl:
        yield (
            f"FEEDPROXY_NEGATIVE_TTL ({settings.negative_ttl:g}) is above FEEDPROXY_CACHE_TTL "
            f"({settings.cache_ttl:g}): that something is not there is believed for longer than what is. "
            "Lower it."
        )
    if settings.stale_if_error < settings.stale_while_revalidate:
        yield (
            f"FEEDPROXY_STALE_IF_ERROR ({settings.stale_if_error:g}) is below "
            f"FEEDPROXY_STALE_WHILE_REVALIDATE ({settings.stale_while_revalidate:g}): copies that are good "
            "enough on a good day would be withheld on a bad one. Raise it."
        )


def _of_upstream(settings: Settings) -> Iterator[str]:
    if settings.retry_max > 1 and settings.retry_base_ms >= settings.upstream_timeout * 1000:
        yield (
            f"FEEDPROXY_RETRY_BASE_MS ({settings.retry_base_ms}) is no less than FEEDPROXY_UPSTREAM_TIMEOUT "
            f"({settings.upstream_timeout:g} s), within which retries must fit. Lower it."
        )
    if settings.upstream_concurrency == 1:
        yield (
            "FEEDPROXY_UPSTREAM_CONCURRENCY is 1: one slow answer holds up all others, and "
            "FEEDPROXY_UPSTREAM_RPS is hardly ever reached. Raise it."
        )


def _of_posts(settings: Settings) -> Iterator[str]:
    waits_s, keeps_s = sum(settings.syndication_retry_delays), settings.max_post_age_days * _DAY_S
    if waits_s >= keeps_s:
        yield (
            f"FEEDPROXY_SYNDICATION_RETRY_DELAYS are {waits_s:g} s together, and after "
            f"FEEDPROXY_MAX_POST_AGE_DAYS ({settings.max_post_age_days}) a post expires: the last retries "
            "never come. Shorten the delays or raise the age."
        )
    if settings.lease_s < _SHORTEST_LEASE_S:
        yield (
            f"FEEDPROXY_LEASE_S is {settings.lease_s:g}: a Redis that waits for its disk (an fsync) answers "
            "later than that, and workers lose posts that they are working on. Give it "
            f"{_SHORTEST_LEASE_S:g} or more."
        )
    if settings.dead_retention_days < settings.max_post_age_days:
        yield (
            f"FEEDPROXY_DEAD_RETENTION_DAYS ({settings.dead_retention_days}) is below "
            f"FEEDPROXY_MAX_POST_AGE_DAYS ({settings.max_post_age_days}): what has failed is forgotten while "
            "it could still be retried. Raise it."
        )


def _is_loopback(host: str) -> bool:
    address = address_of(_bare(host))
    return host == "localhost" if address is None else address.is_loopback


def _is_private(host: str) -> bool:
    """Whether only this host and private networks reach a listener there; a name might mean anything."""
    address = address_of(_bare(host))
    return host == "localhost" if address is None else is_own(address)


def _is_private_url(url: str) -> bool:
    return _is_private(urlsplit(url).hostname or "")


def _bare(host: str) -> str:
    return host.strip("[]")


def _is_everybody(network: IpNetwork) -> bool:
    # Halves of the net are as much as all of it.
    return network.prefixlen <= 1

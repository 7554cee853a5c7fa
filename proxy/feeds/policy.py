"""The operator's wishes for feeds: how long they are fresh, how long they serve when stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.feeds.freshness import Lifetime, Windows, lifetime
from proxy.feeds.key import FeedKey
from proxy.settings import Settings
from proxy.syntax import at_uri_authority, with_authority
from proxy.tenants import FeedRule


@dataclass(slots=True)
class Rules:
    """The [[feeds]] of feedproxy.toml, which may be read again while we run."""

    current: tuple[FeedRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPolicy:
    """How long answers live, in seconds; of the rules of feedproxy.toml the first match wins."""

    ttl_s: float
    negative_ttl_s: float
    windows: Windows
    timeout_s: float
    rules: Rules

    def lifetime_of(
        self,
        key: FeedKey,
        *,
        negative: bool,
        dids: Mapping[str, str],
        initial_age_s: float,
        cost_s: float,
        early_draw: float,
    ) -> Lifetime:
        """The lifetime of an answer to `key` under this policy."""
        return lifetime(
            ttl_s=self.negative_ttl_s if negative else self._ttl_of(key, dids),
            fraction=key.fraction,
            initial_age_s=initial_age_s,
            cost_s=cost_s,
            early_draw=early_draw,
        )

    def keep_s(self, life: Lifetime, initial_age_s: float, *, negative: bool) -> float:
        """For how many seconds after its arrival an answer is of any use."""
        fresh_s = life.fresh_until_s - initial_age_s
        if negative:
            return fresh_s
        return fresh_s + max(self.windows.stale_while_revalidate_s, self.windows.stale_if_error_s)

    def _ttl_of(self, key: FeedKey, dids: Mapping[str, str]) -> float:
        for rule in self.rules.current:
            if rule.method in (None, key.nsid) and _concerns(rule.actor, key, dids):
                return rule.ttl_s
        return self.ttl_s


def _concerns(actor: str | None, key: FeedKey, dids: Mapping[str, str]) -> bool:
    if actor is None:
        return True
    if actor.startswith("at://"):
        return any(_under_did(value, dids) == _under_did(actor, dids) for value in key.at_uris())
    return any(dids.get(account, account) == dids.get(actor, actor) for account in key.accounts())


def _under_did(uri: str, dids: Mapping[str, str]) -> str:
    authority = at_uri_authority(uri)
    return with_authority(uri, dids.get(authority, authority))


def longest_life_s(settings: Settings) -> float:
    """For how many seconds a stored answer may be of use, at most."""
    longest_ttl_s = max([settings.cache_ttl, *(feed.ttl_s for feed in settings.tenants.feeds)])
    return 2 * longest_ttl_s + max(settings.stale_while_revalidate, settings.stale_if_error)


def policy_of(settings: Settings, rules: Rules) -> FeedPolicy:
    """The policy that `settings` spell out."""
    return FeedPolicy(
        ttl_s=settings.cache_ttl,
        negative_ttl_s=settings.negative_ttl,
        windows=Windows(
            stale_while_revalidate_s=settings.stale_while_revalidate,
            stale_if_error_s=settings.stale_if_error,
        ),
        timeout_s=settings.upstream_timeout,
        rules=rules,
    )

"""The operator's wishes for feeds: how long they are fresh, how long they serve when stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.feeds.freshness import Lifetime, Windows, lifetime
from proxy.feeds.key import FeedKey
from proxy.settings import Settings
from proxy.tenants import FeedRule


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPolicy:
    """How long answers live, in seconds; of the `rules` of feedproxy.toml the first match wins."""

    ttl_s: float
    negative_ttl_s: float
    windows: Windows
    client_max_age_s: float
    timeout_s: float
    rules: tuple[FeedRule, ...] = ()

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
        for rule in self.rules:
            if rule.method in (None, key.nsid) and _concerns(rule.actor, key, dids):
                return rule.ttl_s
        return self.ttl_s


def _concerns(actor: str | None, key: FeedKey, dids: Mapping[str, str]) -> bool:
    if actor is None:
        return True
    if actor.startswith("at://"):
        return any(value == actor for _, value in key.params)
    wanted = actor.lower() if not actor.startswith("did:") else actor
    return any(account == wanted or dids.get(account) == wanted for account in key.accounts())


def policy_of(settings: Settings) -> FeedPolicy:
    """The policy that `settings` spell out."""
    return FeedPolicy(
        ttl_s=settings.cache_ttl,
        negative_ttl_s=settings.negative_ttl,
        windows=Windows(
            stale_while_revalidate_s=settings.stale_while_revalidate,
            stale_if_error_s=settings.stale_if_error,
        ),
        client_max_age_s=settings.client_max_age,
        timeout_s=settings.upstream_timeout,
        rules=settings.tenants.feeds,
    )

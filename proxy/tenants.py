"""What feedproxy.toml says: accounts, sites and feeds. It points at secrets and never holds them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from proxy.syntax import at_uri_authority, is_at_identifier, is_at_uri, is_nsid, with_authority

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?|\[[0-9a-f:.]+\](:\d{1,5})?")


def _account_identifier(value: str) -> str:
    if not is_at_identifier(value):
        raise ValueError("must be a handle or a DID")
    return value if value.startswith("did:") else value.lower()


def _account_or_uri(value: str) -> str:
    if is_at_uri(value):
        authority = at_uri_authority(value)
        return value if authority.startswith("did:") else with_authority(value, authority.lower())
    return _account_identifier(value)


def _host_name(value: str) -> str:
    value = value.lower()
    if _HOST_NAME.fullmatch(value) is None:
        raise ValueError("must be a host name")
    return value


def _http_url(value: str) -> str:
    if re.fullmatch(r"https?://[^\s/?#@]+/?", value) is None:
        raise ValueError("must be an http(s) origin alone, such as https://bsky.social")
    return value.rstrip("/")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Account(_Table):
    """A Bluesky account that sites may post to."""

    name: Name
    identifier: Annotated[str, AfterValidator(_account_identifier)]
    password_env: EnvName | None = None
    password_file: str | None = None
    service: Annotated[str, AfterValidator(_http_url)] | None = None

    @model_validator(mode="after")
    def _one_password(self) -> Account:
        if (self.password_env is None) == (self.password_file is None):
            raise ValueError("give either password_env or password_file")
        return self


class Site(_Table):
    """A CMS that may post, with the bearer tokens it shows."""

    name: Name
    token_env: EnvName | tuple[EnvName, ...]
    accounts: tuple[Name, ...] = Field(min_length=1)
    hosts: tuple[Annotated[str, AfterValidator(_host_name)], ...] = ()
    posts_per_hour: int = Field(60, ge=1, le=100_000)
    max_waiting: int = Field(10_000, ge=1, le=10_000_000)
    langs: tuple[str, ...] = Field((), max_length=3)
    template: str = Field("{title}\n\n{excerpt}\n\n{url}", max_length=2000)
    unpublish: Literal["keep", "delete"] = "keep"
    callback_secrets_env: tuple[EnvName, ...] = ()

    @property
    def token_envs(self) -> tuple[str, ...]:
        """Names of the variables that hold this site's tokens, the current one first."""
        return (self.token_env,) if isinstance(self.token_env, str) else self.token_env


class FeedRule(_Table):
    """A freshness lifetime of its own for an actor's feeds or for a method."""

    actor: Annotated[str, AfterValidator(_account_or_uri)] | None = None
    method: str | None = None
    ttl_s: float = Field(ge=0.1, le=30 * 86400)

    @model_validator(mode="after")
    def _names_something(self) -> FeedRule:
        if self.actor is None and self.method is None:
            raise ValueError("give actor, method or both")
        if self.method is not None and not is_nsid(self.method):
            raise ValueError("method must be an NSID such as app.bsky.actor.getProfile")
        return self


class Tenants(_Table):
    """The whole of feedproxy.toml."""

    accounts: tuple[Account, ...] = ()
    sites: tuple[Site, ...] = ()
    feeds: tuple[FeedRule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Tenants:
        known = [account.name for account in self.accounts]
        for kind, names in (("account", known), ("site", [site.name for site in self.sites])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} {twice[0]!r} is defined twice")
        for site in self.sites:
            strangers = [name for name in site.accounts if name not in known]
            if strangers:
                raise ValueError(
                    f"site {site.name!r} names the account {strangers[0]!r}, which is not defined"
                )
        return self

    def referenced_env(self) -> frozenset[str]:
        """Names of every environment variable that the file points at."""
        names = {account.password_env for account in self.accounts if account.password_env}
        for site in self.sites:
            names.update(site.token_envs, site.callback_secrets_env)
        return frozenset(names)

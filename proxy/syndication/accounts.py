"""Who may post where: accounts and sites of feedproxy.toml with their secrets, and the check of site tokens.

Secrets live in SecretStr and in private fields only: no repr, error or log shows them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from proxy.clock import Clock
from proxy.errors import Rejected, UsageError
from proxy.resilience.failures import MAX_CLIENTS, FailureLimit
from proxy.resilience.limiter import Rate
from proxy.syndication.signing import callback_secrets
from proxy.tenants import Account, Site, Tenants

MIN_TOKEN_CHARS: Final = 20
# What one client may get wrong: a burst, then one in six seconds.
FAILURES: Final = Rate(per_s=1 / 6, burst=10)

_TOKEN = re.compile(r"[!-~]+")
# Memory-hard, so that what is stored tells nothing of a weak password; some 30 ms.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What logs an account in."""

    account: str
    identifier: str
    password: SecretStr

    @cached_property
    def fingerprint(self) -> str:
        """Tells whether the password has changed, and nothing else; may be stored.

        16 bytes in hexadecimal, the same on each host: scrypt of the password, keyed with the account, so
        that equal passwords of two accounts do not show. Costs some 30 ms the first time: see Accounts.warm.
        """
        salt = f"feedproxy credential 1\n{self.account}\n{self.identifier}".encode()
        digest = hashlib.scrypt(
            self.password.get_secret_value().encode(),
            salt=salt,
            n=_SCRYPT_N,
            r=_SCRYPT_R,
            p=_SCRYPT_P,
            maxmem=64 * 1024 * 1024,
            dklen=16,
        )
        return digest.hex()


@dataclass(frozen=True, slots=True)
class Accounts:
    """Accounts and sites at one time, with their secrets. Build it with `load_accounts`.

    `trouble` are sentences on secrets that are not there: such a site or account exists, but cannot be used.
    """

    accounts: Mapping[str, Account]
    sites: Mapping[str, Site]
    trouble: tuple[str, ...] = ()
    _credentials: Mapping[str, Credential] = field(default_factory=dict, repr=False)
    _callback_secrets: Mapping[str, tuple[SecretStr, ...]] = field(default_factory=dict, repr=False)
    # Site and the SHA-256 of one of its tokens, for each token.
    _tokens: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    def credential(self, account: str) -> Credential | None:
        """What logs `account` in; None if it is not known here or its password is missing."""
        return self._credentials.get(account)

    def callback_secrets(self, site: str) -> tuple[SecretStr, ...]:
        """What notifications to `site` are signed with, newest first; empty if it is not known here."""
        return self._callback_secrets.get(site, ())

    async def warm(self) -> None:
        """Compute the fingerprints that were not yet, in a thread: nothing else is held up by them."""
        for credential in self._credentials.values():
            if "fingerprint" not in vars(credential):
                await asyncio.to_thread(getattr, credential, "fingerprint")

    def usable(self) -> frozenset[str]:
        """Accounts that this process can log in to."""
        return frozenset(self._credentials)

    def site_of(self, token: str) -> Site | None:
        """The site that `token` belongs to.

        Takes the same time whichever token fits, or none: all are compared, by their hashes, to the end.
        """
        given = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = ""
        for site, digest in self._tokens:
            found = site if hmac.compare_digest(given, digest) else found
        return self.sites.get(found)


def load_accounts(
    tenants: Tenants, environ: Mapping[str, str], *, before: Accounts | None = None
) -> Accounts:
    """Accounts and sites of feedproxy.toml with the secrets it points at, in `environ` and in files.

    A secret that is missing is no error, since another host may have it, but noted in `trouble`. Credentials
    that are the same `before` are taken over. Raises UsageError for a token that is too short or belongs to
    two sites.
    """
    trouble: list[str] = []
    credentials: dict[str, Credential] = {}
    for account in tenants.accounts:
        password = _password(account, environ, trouble)
        if password:
            credential = Credential(
                account=account.name, identifier=account.identifier, password=SecretStr(password)
            )
            known = before.credential(account.name) if before is not None else None
            credentials[account.name] = known if known == credential else credential
    return Accounts(
        accounts={account.name: account for account in tenants.accounts},
        sites={site.name: site for site in tenants.sites},
        trouble=(*trouble, *_missing_secrets(tenants, environ)),
        _credentials=credentials,
        _callback_secrets={site.name: callback_secrets(site, environ) for site in tenants.sites},
        _tokens=_tokens(tenants, environ),
    )


def secrets_of(tenants: Tenants, environ: Mapping[str, str]) -> frozenset[str]:
    """Every secret that feedproxy.toml points at, for whoever must not let them be seen."""
    named = {environ.get(name, "").strip() for name in tenants.referenced_env()}
    return frozenset((named | {_password(account, environ, []) for account in tenants.accounts}) - {""})


class AccountBook:
    """The accounts as they are now; SIGHUP replaces them. `current` is never changed in place.

    `changed` is set by each reload; whoever waits for it clears it.
    """

    def __init__(self, tenants: Tenants, environ: Mapping[str, str]) -> None:
        self.current = load_accounts(tenants, environ)
        self.changed = asyncio.Event()

    async def reload(self, tenants: Tenants, environ: Mapping[str, str]) -> None:
        """Read secrets again, files included; raises UsageError and keeps what it had when they are wrong.

        What comes into force has its fingerprints computed.
        """
        following = load_accounts(tenants, environ, before=self.current)
        await following.warm()
        self.current = following
        self.changed.set()


class TokenCheck:
    """Finds the site of a bearer token, and slows down clients that guess.

    A client over its limit is refused even with a token that fits, or else its guesses would still be
    answered; except with a site whose token it has shown before, so that a CMS with a wrong token does not
    lock out the others behind its address. Counted in this process.
    """

    def __init__(self, book: AccountBook, clock: Clock, *, failures: Rate = FAILURES) -> None:
        self._book = book
        self._failures = FailureLimit(failures, clock)
        self._welcome: OrderedDict[tuple[str, str], None] = OrderedDict()

    def site(self, client: str, authorization: str | None) -> Site:
        """The site whose token the Authorization header carries; `client` is who shows it.

        Raises Rejected: 401 without a token that fits, 429 after too many of those.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        if not token:
            raise _unauthorized("a bearer token is required")
        site = self._book.current.site_of(token)
        if site is not None and (client, site.name) in self._welcome:
            self._welcome.move_to_end((client, site.name))
            return site
        self._refuse_guessing(client)
        if site is None:
            self._failures.count(client)
            raise _unauthorized("the token belongs to no site")
        self._welcome[client, site.name] = None
        while len(self._welcome) > MAX_CLIENTS:
            self._welcome.popitem(last=False)
        return site

    def _refuse_guessing(self, client: str) -> None:
        if (wait_s := self._failures.wait_s(client)) > 0:
            raise Rejected(
                429,
                "too_many_failures",
                "too many wrong tokens came from this address",
                (("Retry-After", str(math.ceil(wait_s))),),
            )


def _password(account: Account, environ: Mapping[str, str], trouble: list[str]) -> str:
    if account.password_env is not None:
        if not environ.get(account.password_env):
            trouble.append(f"account {account.name!r}: {account.password_env} is not set")
        return environ.get(account.password_env, "")
    # The path is not repeated: it may be the password itself.
    try:
        password = Path(account.password_file or "").read_text(encoding="utf-8").strip()
    except OSError as error:
        trouble.append(f"account {account.name!r}: cannot read its password_file: {error.strerror}")
        return ""
    except UnicodeDecodeError:
        trouble.append(f"account {account.name!r}: its password_file is not UTF-8 text")
        return ""
    if not password:
        trouble.append(f"account {account.name!r}: its password_file is empty")
    return password


def _missing_secrets(tenants: Tenants, environ: Mapping[str, str]) -> list[str]:
    return [
        f"site {site.name!r}: {name} is not set"
        for site in tenants.sites
        for name in (*site.token_envs, *site.callback_secrets_env)
        if not environ.get(name, "").strip()
    ]


def _tokens(tenants: Tenants, environ: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    tokens: dict[bytes, str] = {}
    for site in tenants.sites:
        for name in site.token_envs:
            token = environ.get(name, "").strip()
            if not token:
                continue
            if len(token) < MIN_TOKEN_CHARS:
                raise UsageError(f"{name}: a token must have at least {MIN_TOKEN_CHARS} characters")
            if _TOKEN.fullmatch(token) is None:
                raise UsageError(f"{name}: a token must be plain ASCII without spaces, as HTTP carries it")
            digest = hashlib.sha256(token.encode("ascii")).digest()
            if tokens.setdefault(digest, site.name) != site.name:
                raise UsageError(f"{name}: sites {tokens[digest]!r} and {site.name!r} have the same token")
    return tuple((site, digest) for digest, site in tokens.items())


def _unauthorized(message: str) -> Rejected:
    return Rejected(401, "unauthorized", message, (("WWW-Authenticate", 'Bearer realm="feedproxy"'),))

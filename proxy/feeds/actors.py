"""The only feeds that an operator wants served, where ACTORS names them.

A handle and the DID behind it are one account. Which DID or handle that is, is asked of our own read path,
and only for accounts that the operator named: whoever asks for others costs the upstream nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from proxy.errors import Rejected, UpstreamError
from proxy.feeds.answer import Answer
from proxy.feeds.key import ACCOUNT_FORMATS, FeedKey
from proxy.feeds.methods import METHODS, Method
from proxy.syntax import at_uri_authority, is_did, with_authority

_RESOLVE: Final = "com.atproto.identity.resolveHandle"
_PROFILE: Final = "app.bsky.actor.getProfile"
_FORMATS: Final = ACCOUNT_FORMATS | {"at-uri"}

Ask = Callable[[FeedKey], Awaitable[Answer]]
# From a name that somebody uses to the names that the operator used for the same account.
_Aliases = Mapping[str, AbstractSet[str]]


class Actors:
    """`allowed` are handles, DIDs and at:// URIs, None if all feeds are served. `ask` is the read path."""

    def __init__(self, allowed: Iterable[str] | None, ask: Ask) -> None:
        self._ask = ask
        self._restricted = allowed is not None
        names = {_canonical(name) for name in allowed or ()}
        self._uris = frozenset(name for name in names if name.startswith("at://"))
        self._accounts = frozenset(names - self._uris)
        self._named = self._accounts | {at_uri_authority(uri) for uri in self._uris}

    async def check(self, key: FeedKey) -> None:
        """Raises Rejected (403) unless each account and each at:// URI that `key` names is allowed.

        What need not name any, such as a search, is not. Raises UpstreamError while that cannot be known.
        """
        if self.allows(key):
            return
        if not _is_of_accounts(METHODS[key.nsid]):
            raise Rejected(403, "Forbidden", f"{key.nsid} is not served here")
        others = [value for value in _named_in(key) if not self._allows(value, {})]
        aliases, trouble = await self._aliases({_account_of(value) for value in others})
        if all(self._allows(value, aliases) for value in others):
            return
        if trouble is not None:
            raise trouble
        raise Rejected(403, "Forbidden", "this feed is not served here")

    def allows(self, key: FeedKey) -> bool:
        """Whether `key` is allowed by the names in it, whoever is behind them."""
        if not self._restricted:
            return True
        return _is_of_accounts(METHODS[key.nsid]) and all(self._allows(value, {}) for value in _named_in(key))

    def _allows(self, value: str, aliases: _Aliases) -> bool:
        """Whether `value`, an account or an at:// URI, is one of ours under any of its names."""
        names = {_account_of(value), *aliases.get(_account_of(value), ())}
        if not names.isdisjoint(self._accounts):
            return True
        is_uri = value.startswith("at://")
        return is_uri and any(_canonical(with_authority(value, name)) in self._uris for name in names)

    async def _aliases(self, strangers: AbstractSet[str]) -> tuple[_Aliases, UpstreamError | None]:
        """The other names of our accounts, of the kinds that `strangers` are; and why some are not known."""
        wanted_kinds = {is_did(stranger) for stranger in strangers}
        ours = [name for name in sorted(self._named) if (not is_did(name)) in wanted_kinds]
        found: dict[str, set[str]] = {}
        trouble: UpstreamError | None = None
        answers = await asyncio.gather(*(self._ask(_who_is(name)) for name in ours))
        for name, answer in zip(ours, answers, strict=True):
            trouble = trouble or (answer.error if answer.held is None else None)
            if (other := _other_name(name, answer)) is not None:
                found.setdefault(other, set()).add(name)
        return found, trouble


def _is_of_accounts(method: Method) -> bool:
    return any(param.required and param.format in _FORMATS for param in method.params.values())


def _named_in(key: FeedKey) -> Iterable[str]:
    known = METHODS[key.nsid].params
    return (value for name, value in key.params if known[name].format in _FORMATS)


def _account_of(value: str) -> str:
    return at_uri_authority(value) if value.startswith("at://") else value


def _canonical(name: str) -> str:
    """The operator's names and those of requests, written alike; all of an account is the account."""
    if not name.startswith("at://"):
        return name if is_did(name) else name.lower()
    account = at_uri_authority(name)
    uri = with_authority(name, account if is_did(account) else account.lower()).rstrip("/")
    return at_uri_authority(uri) if uri == f"at://{at_uri_authority(uri)}" else uri


def _who_is(name: str) -> FeedKey:
    """The question that tells the other name of an account."""
    return FeedKey(_PROFILE, (("actor", name),)) if is_did(name) else FeedKey(_RESOLVE, (("handle", name),))


def _other_name(name: str, answer: Answer) -> str | None:
    """What the upstream says of `name`. It has checked that handles and DIDs point at each other."""
    if answer.held is None or answer.held.entry.negative:
        return None
    document = json.loads(answer.held.entry.bodies["identity"])
    other = document.get("handle" if is_did(name) else "did")
    return _canonical(other) if isinstance(other, str) else None

"""Which account is meant: what it logs in with, and its DID, pinned at the first login.

Handles change hands; after the first login only the DID counts, whatever the handle leads to.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from proxy.bluesky.identity import Identities
from proxy.errors import StoreError
from proxy.store.runner import Runner
from proxy.store.scripts import script
from proxy.syntax import is_did
from proxy.telemetry import get_logger

_PIN = script("pin")

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What an account logs in with.

    `identifier` is a handle or DID, `service` the server that the operator named, if any. `fingerprint` tells
    whether the password is another, and nothing else.
    """

    identifier: str
    password: SecretStr
    service: str | None
    fingerprint: str


class Pins:
    """The DIDs of accounts, by the identifiers in feedproxy.toml; shared by the fleet."""

    def __init__(self, store: Runner, identities: Identities, *, prefix: str) -> None:
        self._store = store
        self._identities = identities
        self._prefix = prefix
        self._pins: dict[str, str] = {}
        self._resolved: dict[str, str] = {}

    async def known(self, identifier: str) -> str:
        """The DID as far as it is known without asking the network, else empty. Raises StoreError.

        Before the first login it is what the handle led to when it was last resolved here.
        """
        return await self._pinned(identifier) or self._resolved.get(identifier, "")

    async def did_of(self, login: Login, deadline: float) -> str:
        """The DID, before the first login what the handle leads to. Raises what Identities raises."""
        try:
            if pinned := await self._pinned(login.identifier):
                return pinned
        except StoreError:
            _log.info("pin_not_read")  # the handle leads there still, as a rule
        did = await self._identities.did_of(login.identifier, service=login.service, deadline=deadline)
        self._resolved[login.identifier] = did
        return did

    async def keep(self, identifier: str, did: str) -> None:
        """The account has logged in as `did`: that is who it is from now on. Raises StoreError."""
        if not is_did(identifier) and identifier not in self._pins:
            await self._pin(identifier, did)

    async def _pinned(self, identifier: str) -> str:
        if is_did(identifier):
            return identifier
        return self._pins.get(identifier) or await self._pin(identifier, "")

    async def _pin(self, identifier: str, did: str) -> str:
        pinned: bytes = await self._store.run(_PIN, self._prefix, (identifier, did))
        if pinned:
            self._pins[identifier] = pinned.decode()
        return pinned.decode()

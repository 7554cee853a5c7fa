"""Which account is meant: what it logs in with, and its DID, pinned at the first login.

Handles change hands; after the first login only the DID counts, whatever the handle leads to.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

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


class Identified(Protocol):
    """What says which account is meant: a login, or an account of feedproxy.toml."""

    @property
    def identifier(self) -> str:
        """A handle or DID."""

    @property
    def service(self) -> str | None:
        """The server that the operator named, if any."""


class Pins:
    """The DIDs of accounts, by the identifiers in feedproxy.toml; shared by the fleet."""

    def __init__(self, store: Runner, identities: Identities, *, prefix: str) -> None:
        self._store = store
        self._identities = identities
        self._prefix = prefix
        self._pins: dict[str, str] = {}

    async def known(self, identifier: str) -> str:
        """The DID as far as it is known without asking the network, else empty. Raises StoreError.

        Before the first login it is what the handle led to when the fleet last resolved it.
        """
        if is_did(identifier):
            return identifier
        if pinned := self._pins.get(identifier):
            return pinned
        pinned, resolved = await self._noted(identifier)
        return pinned or resolved

    async def did_of(self, who: Identified, deadline: float) -> str:
        """The DID, before the first login what the handle leads to. Raises what Identities raises."""
        identifier = who.identifier
        if is_did(identifier):
            return identifier
        try:
            if pinned := self._pins.get(identifier) or (await self._noted(identifier))[0]:
                return pinned
        except StoreError:
            _log.info("pin_not_read")  # the handle leads there still, as a rule
        did = await self._identities.did_of(identifier, service=who.service, deadline=deadline)
        with contextlib.suppress(StoreError):
            await self._noted(identifier, did, "resolved")
        return did

    async def keep(self, identifier: str, did: str) -> None:
        """The account has logged in as `did`: that is who it is from now on. Raises StoreError."""
        if not is_did(identifier) and identifier not in self._pins:
            await self._noted(identifier, did, "pins")

    async def _noted(self, identifier: str, did: str = "", where: str = "") -> tuple[str, str]:
        """The pinned and the resolved DID, after `did` was noted as such."""
        pinned, resolved = await self._store.run(_PIN, self._prefix, (identifier, did, where))
        if pinned:
            self._pins[identifier] = pinned.decode()
        return pinned.decode(), resolved.decode()

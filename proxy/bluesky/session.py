"""A session with a PDS, and its sealed form in the store."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from pydantic import SecretStr

from proxy.bluesky.pds import Tokens
from proxy.bluesky.sealing import seal, unseal


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Tokens that open `did` at the origin `pds`. Each renewal has another `version`."""

    did: str
    pds: str
    access: SecretStr
    refresh: SecretStr
    version: str


def session_of(tokens: Tokens, *, pds: str) -> Session:
    """The session that `tokens` are, with a version of its own."""
    return Session(
        did=tokens.did, pds=pds, access=tokens.access, refresh=tokens.refresh, version=uuid.uuid4().hex
    )


def sealed_session(session: Session, password: SecretStr) -> bytes:
    """`session` as it may be stored; its DID and version are stored beside it."""
    tokens = {
        "pds": session.pds,
        "access": session.access.get_secret_value(),
        "refresh": session.refresh.get_secret_value(),
    }
    return seal(json.dumps(tokens).encode(), password=password, did=session.did)


def opened(sealed: bytes, *, password: SecretStr, did: str, version: str) -> Session | None:
    """What `sealed_session` made; None if there is nothing, or another password sealed it.

    Raises SealedByNewer.
    """
    plain = unseal(sealed, password=password, did=did) if sealed else None
    if plain is None:
        return None
    tokens = json.loads(plain)
    return Session(
        did=did,
        pds=tokens["pds"],
        access=SecretStr(tokens["access"]),
        refresh=SecretStr(tokens["refresh"]),
        version=version,
    )

"""Signatures of notifications, as https://www.standardwebhooks.com has them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr
from standardwebhooks import Webhook

from proxy.errors import UsageError
from proxy.tenants import Site

_PREFIX: Final = "whsec_"
# As the specification has it.
_MIN_BYTES, _MAX_BYTES = 24, 64
_PURPOSE: Final = b"feedproxy callback 1"
_DERIVED_BYTES: Final = 32


def callback_secrets(site: Site, environ: Mapping[str, str]) -> tuple[SecretStr, ...]:
    """What notifications to `site` are signed with: its own secrets, else what follows from its tokens.

    Raises UsageError for one that is no secret.
    """
    if site.callback_secrets_env:
        given = {name: environ.get(name, "").strip() for name in site.callback_secrets_env}
        return tuple(SecretStr(_checked(name, text)) for name, text in given.items() if text)
    tokens = (environ.get(name, "").strip() for name in site.token_envs)
    return tuple(SecretStr(derived_secret(token, site.name)) for token in tokens if token)


def derived_secret(token: str, site: str) -> str:
    """The secret of a site that has none of its own: HKDF-SHA256 of a token of its, salted with its name."""
    kdf = HKDF(algorithm=SHA256(), length=_DERIVED_BYTES, salt=site.encode(), info=_PURPOSE)
    return _PREFIX + base64.b64encode(kdf.derive(token.encode())).decode()


def signed_headers(secrets: Sequence[SecretStr], *, message_id: str, body: str, now: float) -> dict[str, str]:
    """The headers that sign `body` with each of the `secrets`, at the instant `now` (seconds since 1970)."""
    at = datetime.fromtimestamp(int(now), UTC)
    signatures = (Webhook(secret.get_secret_value()).sign(message_id, at, body) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(signatures),
    }


def _checked(name: str, text: str) -> str:
    try:
        # As the library: padding may be missing.
        bare = text.removeprefix(_PREFIX).rstrip("=")
        raw = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not _MIN_BYTES <= len(raw) <= _MAX_BYTES:
        raise UsageError(
            f"{name}: a secret is {_PREFIX} and {_MIN_BYTES} to {_MAX_BYTES} random bytes in base64, as of "
            "`openssl rand -base64 32`"
        )
    return text

"""Secrets as they lie in the store: readable to whoever may log in, to nobody else.

AES-GCM under a key that HKDF derives from the account's password, with the DID as salt: a changed password
voids what was sealed before.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

# The first byte of what is sealed. This version reads no other: there was none before.
FORMAT: Final = 1

_PURPOSE: Final = b"feedproxy session 1"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class SealedByNewer(Exception):
    """What is sealed has a format of a later version of feedproxy."""


def seal(plain: bytes, *, password: SecretStr, did: str) -> bytes:
    """`plain` as it may be stored: format, nonce, ciphertext with its tag."""
    nonce = os.urandom(_NONCE_BYTES)
    return bytes((FORMAT,)) + nonce + _cipher(password, did).encrypt(nonce, plain, _bound_to(did))


def unseal(sealed: bytes, *, password: SecretStr, did: str) -> bytes | None:
    """What was sealed, None if it was with another password, for another account, or is damaged.

    Raises SealedByNewer.
    """
    if sealed[:1] > bytes((FORMAT,)):
        raise SealedByNewer
    nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    if sealed[:1] != bytes((FORMAT,)) or len(nonce) < _NONCE_BYTES:
        return None
    try:
        return _cipher(password, did).decrypt(nonce, ciphertext, _bound_to(did))
    except InvalidTag:
        return None


def _cipher(password: SecretStr, did: str) -> AESGCM:
    derive = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=did.encode(), info=_PURPOSE)
    return AESGCM(derive.derive(password.get_secret_value().encode()))


def _bound_to(did: str) -> bytes:
    return _PURPOSE + b"\n" + did.encode()

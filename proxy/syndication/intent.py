"""What is going to be sent, frozen before anything is: one record, or those of a thread. Pure.

Sent again it is the same byte for byte, whatever was edited meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import libipld

from proxy.errors import Faulty
from proxy.syndication.rkey import record_uri, reply_key

# CIDv1, DAG-CBOR, SHA-256 of 32 bytes (https://atproto.com/specs/data-model#link-and-cid-formats).
_CID_PREFIX: Final = bytes((0x01, 0x71, 0x12, 0x20))


@dataclass(frozen=True, slots=True)
class FrozenRecord:
    """A record as it is sent: its DAG-JSON, and the CID that the PDS gives it."""

    rkey: str
    json_bytes: bytes
    cid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """What is shown below a text: `value` as it stands in the record. See Intent for the others."""

    value: Mapping[str, Any]
    degraded: tuple[str, ...] = ()
    uploaded_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Intent:
    """The records of a post in the order of its thread, without what follows from their place in it.

    `url` is the post's when they were made, `degraded` says what had to be left out or cut. `uploaded_at`
    (seconds since 1970) is since when its pictures have been with the PDS, 0 if it has none.
    """

    records: tuple[Mapping[str, Any], ...]
    url: str
    degraded: tuple[str, ...] = ()
    uploaded_at: float = 0.0

    @property
    def has_pictures(self) -> bool:
        """Whether its first record names blobs."""
        return self.uploaded_at > 0

    def showing(self, embed: Embed) -> Intent:
        """The same with another embed."""
        root = {name: value for name, value in self.records[0].items() if name != "embed"}
        if embed.value:
            root["embed"] = embed.value
        degraded = tuple(dict.fromkeys((*self.degraded, *embed.degraded)))
        return Intent((root, *self.records[1:]), self.url, degraded, embed.uploaded_at)

    def at(self, did: str, rkey: str) -> tuple[FrozenRecord, ...]:
        """The records as they are sent when the first has the key `rkey`: each replies to the one before.

        A reply names records by their CIDs, which follow from their bytes: the whole thread is known before
        any of it exists.
        """
        frozen: list[FrozenRecord] = []
        above: list[dict[str, str]] = []
        for part, alone in enumerate(self.records):
            thread = {"reply": {"root": above[0], "parent": above[-1]}} if above else {}
            record = {**alone, **thread}
            frozen.append(FrozenRecord(reply_key(rkey, part), canonical_json(record), cid_of(record)))
            above.append({"uri": record_uri(did, frozen[-1].rkey), "cid": frozen[-1].cid})
        return tuple(frozen)

    def stored(self) -> bytes:
        """The intent as a delivery keeps it; its form is part of the delivery's format (job.FORMAT)."""
        return canonical_json(
            {
                "records": list(self.records),
                "url": self.url,
                "degraded": list(self.degraded),
                "uploaded_at": self.uploaded_at,
            }
        )


def restore_intent(stored: bytes) -> Intent:
    """The intent that was stored. Raises Faulty when it is damaged."""
    try:
        document = json.loads(stored)
        records = tuple(dict(record) for record in document["records"])
        degraded = tuple(map(str, document["degraded"]))
        return Intent(records, str(document["url"]), degraded, float(document.get("uploaded_at", 0)))
    except (ValueError, KeyError, TypeError):
        raise Faulty("damaged_intent", "what is stored of a post is damaged", ()) from None


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """`document` as bytes: one form for one document."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def cid_of(record: Mapping[str, Any]) -> str:
    """The CID of a record in its JSON form (https://atproto.com/specs/data-model)."""
    digest = hashlib.sha256(libipld.encode_dag_cbor(_linked(record))).digest()
    return str(libipld.encode_cid(_CID_PREFIX + digest))


def _linked(value: Any) -> Any:
    """The value as libipld takes it: `$link` as the raw bytes of its CID."""
    if isinstance(value, Mapping):
        if value.keys() == {"$link"}:
            return bytes(libipld.decode_multibase(value["$link"])[1])
        return {name: _linked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_linked(item) for item in value]
    return value

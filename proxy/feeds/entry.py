"""A stored answer: the upstream's bytes, its wire-ready variants, and what its freshness hangs on."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import brotli
import zstandard

from proxy.feeds.key import FeedKey

# Of what `Entry.to_fields` writes. Version N reads N and N-1; anything else is a miss.
FORMAT: Final = 1
_READABLE: Final = frozenset({FORMAT})

# In the order of preference among codings a client likes equally. br and zstd at 5 come within a few
# percent of their best sizes, in half a millisecond and a quarter of one for a feed of 75 KB.
CODINGS: Final = ("br", "zstd", "gzip")
_WORTH_COMPRESSING_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An answer as it is stored, the same for every process.

    `bodies` maps a coding ("identity", "br", "zstd", "gzip") to the body in it. `initial_age_s` is the age at
    arrival, `cost_s` what the fetch took, `early_draw` the sample that sets the early refresh. `dids` maps
    the handles of the accounts that the question names to their DIDs, as far as the answer told them.
    `cursor` is the next page's. `stamp` is new with every confirmation by the upstream.
    """

    key_id: str
    stamp: str
    status: int
    content_type: str
    bodies: Mapping[str, bytes]
    body_hash: str
    upstream_etag: str | None
    labelers: str | None
    initial_age_s: float
    cost_s: float
    early_draw: float
    dids: Mapping[str, str]
    cursor: str | None

    @property
    def negative(self) -> bool:
        """Whether this is an error that answers the question."""
        return self.status >= 400

    @property
    def size_bytes(self) -> int:
        """What the entry takes in memory, about."""
        return sum(len(body) for body in self.bodies.values()) + len(self.key_id) + 1000

    def etag(self, coding: str) -> str:
        """The strong entity tag of the body in `coding`."""
        return f'"{self.body_hash}"' if coding == "identity" else f'"{self.body_hash}-{coding}"'

    def to_fields(self) -> dict[str, bytes]:
        """The entry as the fields of a Redis hash."""
        meta = {
            "key": self.key_id,
            "stamp": self.stamp,
            "status": self.status,
            "type": self.content_type,
            "etag": self.upstream_etag,
            "labelers": self.labelers,
            "age": self.initial_age_s,
            "cost": self.cost_s,
            "draw": self.early_draw,
            "dids": dict(self.dids),
            "cursor": self.cursor,
        }
        bodies = {f"body:{coding}": body for coding, body in self.bodies.items()}
        return {
            "format": str(FORMAT).encode(),
            "hash": self.body_hash.encode(),
            "meta": json.dumps(meta, separators=(",", ":")).encode(),
            **bodies,
        }


def entry_from_fields(fields: Mapping[bytes, bytes], key_id: str) -> Entry | None:
    """The entry that `Entry.to_fields` wrote for `key_id`; None for any other, older or newer thing."""
    try:
        if int(fields[b"format"]) not in _READABLE:
            return None
        meta = json.loads(fields[b"meta"])
        bodies = {
            name.removeprefix(b"body:").decode(): body
            for name, body in fields.items()
            if name.startswith(b"body:")
        }
        if meta["key"] != key_id or "identity" not in bodies:
            return None
        return Entry(
            key_id=key_id,
            stamp=str(meta["stamp"]),
            status=int(meta["status"]),
            content_type=str(meta["type"]),
            bodies=bodies,
            body_hash=fields[b"hash"].decode(),
            upstream_etag=meta["etag"],
            labelers=meta["labelers"],
            initial_age_s=float(meta["age"]),
            cost_s=float(meta["cost"]),
            early_draw=float(meta["draw"]),
            dids=dict(meta["dids"]),
            cursor=meta["cursor"],
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def compressed(body: bytes) -> tuple[dict[str, bytes], str]:
    """`body` in every coding that makes it smaller, and its hash. Takes milliseconds: not for the loop."""
    bodies = {"identity": body}
    if len(body) >= _WORTH_COMPRESSING_BYTES:
        made = {
            "br": brotli.compress(body, quality=5),
            "zstd": zstandard.ZstdCompressor(level=5).compress(body),
            "gzip": gzip.compress(body, compresslevel=6, mtime=0),
        }
        bodies.update({coding: made[coding] for coding in CODINGS if len(made[coding]) < len(body)})
    return bodies, hashlib.blake2b(body, digest_size=12).hexdigest()


# Where views put the accounts they speak of. Records, facets and their like are written by users, who may
# put any handle beside any DID: they are not looked into.
_VIEW_FIELDS: Final = (
    *("profiles", "actors", "followers", "follows", "feed", "post", "posts", "thread", "author", "creator"),
    *("subject", "feeds", "view", "list", "lists", "items", "likes", "actor", "repostedBy", "starterPack"),
    *("starterPacks", "parent"),
)


def dids_for(key: FeedKey, document: Mapping[str, object]) -> dict[str, str]:
    """Handle and DID of each account that `key` names, as far as the answer `document` tells them."""
    accounts = frozenset(key.accounts())
    did = document.get("did")
    if key.nsid == "com.atproto.identity.resolveHandle" and isinstance(did, str):
        return dict.fromkeys(accounts, did)
    return dids_in(document, accounts)


def dids_in(document: Any, accounts: frozenset[str]) -> dict[str, str]:
    """Handle and DID of each of `accounts` (either), as far as the views in `document` tell them."""
    found: dict[str, str] = {}
    for view in _views(document):
        if len(found) == len(accounts):
            break
        handle, did = view.get("handle"), view.get("did")
        if isinstance(handle, str) and isinstance(did, str) and {handle.lower(), did} & accounts:
            found.setdefault(handle.lower(), did)
    return found


def _views(document: Any) -> Iterator[Mapping[str, Any]]:
    pending = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(reversed(node))
        elif isinstance(node, dict):
            yield node
            pending.extend(node[name] for name in _VIEW_FIELDS if name in node)

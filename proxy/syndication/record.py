"""The record of a post: frozen once as bytes, with the CID that the PDS will give it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import libipld

from proxy.syndication.post import Post
from proxy.syndication.richtext import RichText, compose, count_graphemes
from proxy.syndication.rkey import POST_COLLECTION

MAX_LANGS: Final = 3
MAX_TAGS: Final = 8
_MAX_TAG_GRAPHEMES: Final = 64
_MAX_TAG_BYTES: Final = 640

# CIDv1, DAG-CBOR, SHA-256 of 32 bytes (https://atproto.com/specs/data-model#link-and-cid-formats).
_CID_PREFIX: Final = bytes((0x01, 0x71, 0x12, 0x20))
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Campaign parameters, which cross-posting tools add; they lead to the same page.
_CAMPAIGN: Final = "utm_"


@dataclass(frozen=True, slots=True)
class FrozenRecord:
    """A record as it is sent, again and again, byte for byte.

    `json_bytes` is its DAG-JSON, `cid` what the PDS answers when it has stored it, `degraded` says what had
    to be left out or cut.
    """

    json_bytes: bytes
    cid: str
    degraded: tuple[str, ...] = ()


def freeze(post: Post, *, template: str, langs: Sequence[str], created_at: float) -> FrozenRecord:
    """The record of `post`. `langs` are the site's, used where the post has none.

    `created_at` (seconds since 1970) is the instant of the first attempt, not of the publication: readers are
    shown a post by the earlier of it and of when it arrived, so one that has waited would sink.
    """
    rich = compose(template=template, title=post.title, excerpt=post.excerpt, text=post.text, url=post.url)
    tags, left_out = _tags(post.tags)
    record: dict[str, Any] = {
        "$type": POST_COLLECTION,
        "text": rich.text,
        "facets": [link.as_record() for link in rich.links],
        "createdAt": datetime.fromtimestamp(created_at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
    }
    if chosen := [*(post.langs or langs)][:MAX_LANGS]:
        record["langs"] = chosen
    if tags:
        record["tags"] = tags
    if post.labels:
        record["labels"] = {
            "$type": "com.atproto.label.defs#selfLabels",
            "values": [{"val": label} for label in post.labels],
        }
    return FrozenRecord(canonical_json(record), cid_of(record), (*_cuts(rich), *left_out))


def canonical_json(record: Mapping[str, Any]) -> bytes:
    """`record` as bytes: one form for one record."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def cid_of(record: Mapping[str, Any]) -> str:
    """The CID of a record in its JSON form (https://atproto.com/specs/data-model)."""
    digest = hashlib.sha256(libipld.encode_dag_cbor(_linked(record))).digest()
    return str(libipld.encode_cid(_CID_PREFIX + digest))


def links_to(record: Mapping[str, Any], url: str) -> bool:
    """Whether `record` is a post that leads its readers to `url`. A reply that mentions it is none."""
    if record.get("reply"):
        return False
    wanted = _page(url)
    return any(_page(uri) == wanted for uri in uris_in(record)) or _stands_in(url, record.get("text"))


def uris_in(record: Mapping[str, Any]) -> Iterator[str]:
    """Where the links and the card of a record lead. Whoever wrote it, no shape of it is an error."""
    for facet in _list(record.get("facets")):
        for feature in _list(_mapping(facet).get("features")):
            uri = _mapping(feature).get("uri")
            if isinstance(uri, str):
                yield uri
    embed = _mapping(record.get("embed"))
    for holder in (embed, _mapping(embed.get("media"))):
        uri = _mapping(holder.get("external")).get("uri")
        if isinstance(uri, str):
            yield uri


def _cuts(rich: RichText) -> Iterator[str]:
    for part in rich.shortened:
        if part != "excerpt":  # which is there to fill what is left
            yield f"the {part} was too long and was cut"


def _tags(tags: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    bare = [tag.strip().removeprefix("#").strip() for tag in tags]
    fitting = [
        tag
        for tag in dict.fromkeys(bare)
        if tag and count_graphemes(tag) <= _MAX_TAG_GRAPHEMES and len(tag.encode()) <= _MAX_TAG_BYTES
    ]
    kept = fitting[:MAX_TAGS]
    left_out = len(dict.fromkeys(tag for tag in bare if tag)) - len(kept)
    return kept, (f"{left_out} of the tags were left out",) if left_out else ()


def _linked(value: Any) -> Any:
    """The value as libipld takes it: `$link` as the raw bytes of its CID."""
    if isinstance(value, Mapping):
        if value.keys() == {"$link"}:
            return bytes(libipld.decode_multibase(value["$link"])[1])
        return {name: _linked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_linked(item) for item in value]
    return value


def _page(url: str) -> tuple[Any, ...] | None:
    """What a URL leads to, without what makes no difference to it; None if it is no web address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    port = None if port == _DEFAULT_PORTS[scheme] else port
    query = [
        pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not pair[0].startswith(_CAMPAIGN)
    ]
    # A site that moved to https kept its posts.
    return parts.hostname.rstrip("."), port, unquote(parts.path).rstrip("/"), urlencode(query)


def _stands_in(url: str, text: Any) -> bool:
    """Whether a word of `text` is the link; some tools set no facet."""
    if not isinstance(text, str):
        return False
    wanted = _page(url)
    return any(_page(word.strip("()[]<>.,;!\"'")) == wanted for word in text.split() if "://" in word)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

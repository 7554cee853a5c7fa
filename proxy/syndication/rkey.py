"""The record key of a post: it follows from what the post is, is known before it exists and never changes."""

from __future__ import annotations

import hashlib
import json
from typing import Final

POST_COLLECTION: Final = "app.bsky.feed.post"

_ALPHABET: Final = "234567abcdefghijklmnopqrstuvwxyz"
_CHARS: Final = 13
_CLOCK_ID_BITS: Final = 10
_MICROSECONDS: Final = 1_000_000
# Keys that are taken are stepped over so many times, as good as never more.
_GENERATIONS: Final = 4
# 53 bits of microseconds end in the year 2255.
_MAX_SECOND: Final = 2**53 // _MICROSECONDS - 1


def record_key(
    *,
    did: str,
    site: str,
    post_id: str,
    published_at_ms: int,
    generation: int,
    collection: str = POST_COLLECTION,
) -> str:
    """A TID (https://atproto.com/specs/tid): a time and a clock id, in the order of time.

    `published_at_ms` is the first publication that was ever seen of the post. Its whole second leads, so that
    keys still sort by time; where in the second, and the clock id, are hashes of everything else: 10⁹ slots a
    second. `generation` is 0 unless the key of the one before is taken by another post's record.
    """
    identity = json.dumps([did, collection, site, post_id, generation], ensure_ascii=False)
    second = min(max(published_at_ms // 1000, 0), _MAX_SECOND)
    microseconds = second * _MICROSECONDS + _hashed("microseconds", identity) % _MICROSECONDS
    return _sortable(microseconds << _CLOCK_ID_BITS | _hashed("clock id", identity) % 2**_CLOCK_ID_BITS)


def is_tid(key: str) -> bool:
    """Whether `key` is a TID, as keys of posts are in general and ours always."""
    return len(key) == _CHARS and key[0] in _ALPHABET[: len(_ALPHABET) // 2] and set(key) <= set(_ALPHABET)


def is_key_of(rkey: str, *, did: str, site: str, post_id: str) -> bool:
    """Whether `record_key` gave `rkey` to this post, whatever its date was then; by chance once in 10⁹."""
    if not is_tid(rkey):
        return False
    published_at_ms = (_number(rkey) >> _CLOCK_ID_BITS) // _MICROSECONDS * 1000
    keys = (
        record_key(did=did, site=site, post_id=post_id, published_at_ms=published_at_ms, generation=number)
        for number in range(_GENERATIONS)
    )
    return rkey in keys


def reply_key(root_key: str, part: int) -> str:
    """The key of a thread's `part` (the root is 0): so many microseconds after its root, in its order."""
    return _sortable(_number(root_key) + (part << _CLOCK_ID_BITS))


def record_uri(did: str, rkey: str, collection: str = POST_COLLECTION) -> str:
    """The at:// URI of a record."""
    return f"at://{did}/{collection}/{rkey}"


def _hashed(purpose: str, identity: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{identity}".encode()).digest())


def _number(key: str) -> int:
    number = 0
    for char in key:
        number = number << 5 | _ALPHABET.index(char)
    return number


def _sortable(number: int) -> str:
    digits = (number >> 5 * place & 31 for place in reversed(range(_CHARS)))
    return "".join(_ALPHABET[digit] for digit in digits)

"""The deletion of what was published: the record, with its thread, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.bluesky.pds import MAX_LISTED, Record
from proxy.syndication.attempt import Outcome, Permanent, Published
from proxy.syndication.job import Delivery
from proxy.syndication.records import Records
from proxy.syndication.rkey import POST_COLLECTION, PostIdentity, key_in, record_uri, reply_key


async def delete_post(
    delivery: Delivery, identity: PostIdentity, generation: int, records: Records
) -> Outcome:
    """Delete what `delivery` published, unless it has become another record since; with its thread.

    `identity` is the post's on the account of `records`, `generation` that of its record key. Reasons go
    without the record's address, which is the job's: they are counted.
    """
    did, rkey = delivery.did or identity.did, delivery.rkey
    if delivery.uri:
        did, _, rkey = delivery.uri.removeprefix("at://").partition(f"/{POST_COLLECTION}/")
    if did != identity.did or (delivery.uri and not rkey):
        return Permanent(reason=f"its record is not a post of {identity.did}")
    own_key = identity.key(generation)
    root = await records.get(rkey or own_key)
    if root is None and not rkey:  # a queue may have forgotten where it is
        root = next((record for record in await records.last() if identity.owns(record.uri)), None)
    rkey = key_in(root.uri) if root else rkey or own_key
    uri = record_uri(did, rkey)
    # Another post, site or tool may have posted what was taken for this post's record.
    ours = identity.owns(uri) or rkey == own_key
    if root is not None and not ours:
        return Permanent(
            reason="its record was not posted by feedproxy for this post, and stays; delete it by hand"
        )
    mended = root is not None and delivery.cid not in ("", root.cid)
    if mended or not (root is None or await records.delete(root)):
        return Permanent(reason="its record was changed since it was published, and stays")
    if ours:
        for reply in await _replies(rkey, uri, records):
            await records.delete(reply)
    return Published(uri=uri, cid=delivery.cid)


async def _replies(root_key: str, root_uri: str, records: Records) -> list[Record]:
    """The replies of the thread, of which some may be gone; no post is long enough for a hundred."""
    end = reply_key(root_key, MAX_LISTED)
    listed = await records.last(before=end)
    if any(key_in(record.uri) >= end for record in listed):  # to this server, cursors are no keys
        parts = [await records.get(reply_key(root_key, part)) for part in range(1, MAX_LISTED)]
        listed = [record for record in parts if record is not None]
    # An author's own replies have keys of their own time.
    return [
        record for record in listed if root_key < key_in(record.uri) < end and _replies_to(record, root_uri)
    ]


def _replies_to(record: Record, root_uri: str) -> bool:
    reply = record.value.get("reply")
    root = reply.get("root") if isinstance(reply, Mapping) else None
    return isinstance(root, Mapping) and root.get("uri") == root_uri

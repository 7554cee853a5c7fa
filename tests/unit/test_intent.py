"""What is sent is known before: its keys, bytes and CIDs, of one record and of a whole thread."""

from __future__ import annotations

import json

import pytest

from proxy.errors import Faulty
from proxy.syndication.intent import Intent, canonical_json, cid_of, restore_intent
from proxy.syndication.rkey import is_tid, record_uri, reply_key

DID, KEY = "did:plc:alice", "3n2vatw364lwz"
RECORDS = tuple({"text": f"Teil {number} 字", "createdAt": "2026-11-22T09:00:00.000Z"} for number in range(3))
INTENT = Intent(RECORDS, "https://blog.example/a", ("a tag was left out",))


def test_a_single_record_is_what_was_frozen():
    (record,) = Intent(RECORDS[:1], "").at(DID, KEY)
    assert (record.rkey, record.cid) == (KEY, cid_of(RECORDS[0]))
    assert record.json_bytes == canonical_json(RECORDS[0])


def test_each_part_of_a_thread_replies_to_the_one_before_and_to_the_first():
    root, second, third = INTENT.at(DID, KEY)
    refs = [{"uri": record_uri(DID, record.rkey), "cid": record.cid} for record in (root, second)]
    assert "reply" not in json.loads(root.json_bytes)
    assert json.loads(second.json_bytes)["reply"] == {"root": refs[0], "parent": refs[0]}
    assert json.loads(third.json_bytes)["reply"] == {"root": refs[0], "parent": refs[1]}
    assert third.cid == cid_of(json.loads(third.json_bytes))


def test_the_parts_have_keys_of_their_own_in_their_order():
    keys = [record.rkey for record in INTENT.at(DID, KEY)]
    assert keys == sorted(set(keys)) == [KEY, reply_key(KEY, 1), reply_key(KEY, 2)]
    assert all(is_tid(reply_key(KEY, part)) for part in range(200))
    assert reply_key(KEY, 1) == "3n2vatw364mwz"  # found again by every later version


def test_at_another_key_the_whole_thread_is_another():
    here, there = INTENT.at(DID, KEY), INTENT.at(DID, reply_key(KEY, 50))
    assert here[0].cid == there[0].cid
    assert not {record.cid for record in here[1:]} & {record.cid for record in there[1:]}


def test_stored_and_restored_it_is_sent_byte_for_byte():
    restored = restore_intent(INTENT.stored())
    assert restored == INTENT
    assert restored.at(DID, KEY) == INTENT.at(DID, KEY)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"[]", b"{}", b'{"records": [5], "url": "", "degraded": []}', INTENT.stored()[:-5], b"\xff"],
)
def test_a_damaged_one_is_noticed(damaged):
    with pytest.raises(Faulty):
        restore_intent(damaged)


@pytest.mark.parametrize(
    "key", ["", "self", "3N2VATW364LWZ", "3n2vatw364lw", "3n2vatw364lwz2", "z" * 13, "3n2vatw364lw1"]
)
def test_what_is_no_tid(key):
    assert not is_tid(key)

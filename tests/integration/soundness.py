"""What must hold when a run of chaos is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.queue import QueueOfTest, queue_on
from integration.chaos import NAMESPACE, TOKEN, Chaos, Cms
from proxy.syndication.record import uris_in

# DID -> record key -> record, as the PDS has them.
Records = Mapping[str, Mapping[str, dict[str, Any]]]


async def assert_sound(chaos: Chaos, cms: Cms, stored: QueueOfTest, records: Records) -> None:
    """Each post is once on each account, and all that is stored says so."""
    _assert_published(chaos, records)
    _assert_told(chaos, cms, records)
    _assert_logins(chaos)
    await _assert_stored(chaos, stored)
    assert set(chaos.exits) == {0}, chaos.exits
    leaked = list(leaks(chaos))
    assert not leaked, leaked


def _assert_published(chaos: Chaos, records: Records) -> None:
    wanted = {f"https://blog.example/{number}" for number in range(chaos.plan.jobs)}
    for person in chaos.people:
        # Text and card lead to the same.
        links = [link for value in records[person.did].values() for link in set(uris_in(value))]
        assert sorted(links) == sorted(wanted), f"missing or twice on {person.name}"
    commits = {(did, rkey): 1 for did, own in records.items() for rkey in own}
    assert dict(chaos.pds.commits) == commits, "written twice, or not by us"


def _assert_told(chaos: Chaos, cms: Cms, records: Records) -> None:
    """Each post was kept, is over, and is where the CMS was told."""
    assert sorted(chaos.shown) == list(range(chaos.plan.jobs))
    for number, shown in chaos.shown.items():
        assert shown["status"] == "completed", shown
        for account, before in zip(shown["accounts"], cms.kept[number]["accounts"], strict=True):
            rkey = account["uri"].rpartition("/")[2]
            value = records[account["did"]][rkey]
            assert set(uris_in(value)) == {f"https://blog.example/{number}"}, account
            assert before["uri"] in (account["uri"], None), f"{before} became {account}"
    # The first of all posts is taken in before the accounts have logged in.
    assert all(account["uri"] for n in cms.kept if n for account in cms.kept[n]["accounts"])
    durability = {answer["durability"] for answer in cms.kept.values() if answer["id"]}
    assert durability == {"fsync"}, durability
    others = [pair for pair in cms.again if len({answer["id"] for answer in pair} - {None}) > 1]
    assert not others, others


def _assert_logins(chaos: Chaos) -> None:
    logins = sorted(call.json()["identifier"] for call in chaos.pds.calls("createSession"))
    assert logins == sorted(person.did for person in chaos.people), logins


async def _assert_stored(chaos: Chaos, stored: QueueOfTest) -> None:
    assert set(stored.states()) == {"done"}, stored.states()
    faults = stored.faults()
    assert not faults, faults
    assert stored.redis.xlen(stored.key("bells")) == 0
    assert stored.redis.xpending(stored.key("bells"), "workers")["pending"] == 0
    async with queue_on(chaos.server.url, NAMESPACE) as queue:
        cursor, repairs = await queue.reconcile()
        while cursor != "0":
            cursor, more = await queue.reconcile(cursor)
            repairs += more
    repairs += [event["repair"] for event in chaos.events("queue_repaired")]
    assert not repairs, repairs
    crashes = chaos.events("attempt_crashed")
    assert not crashes, crashes


def leaks(chaos: Chaos) -> Iterator[str]:
    """Where a secret can be read: in a log, or in anything that was ever written to the store."""
    secrets = {TOKEN, *(person.password for person in chaos.people), *chaos.pds.secrets}
    files = [chaos.directory / "workers.log", *_files(chaos.server.socket.parent)]
    texts = {str(path): path.read_bytes() for path in files}
    texts["the log of serve"] = chaos.serve.log_text().encode()
    for where, text in texts.items():
        for secret in secrets:
            if secret.encode() in text:
                yield f"{where} has {secret[:12]}…"


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]

"""The run of chaos of tests/integration against the reference PDS."""

from __future__ import annotations

import sys

import httpx
import pytest

from harness.lossy import LossyProxy
from harness.pds import Directory
from harness.queue import QueueOfTest
from harness.redis_servers import redis_server
from integration.chaos import APPEND_ALWAYS, LOST_SHARE, NAMESPACE, Chaos, Person, secrets_of
from integration.soundness import assert_sound
from proxy.syndication.rkey import POST_COLLECTION


def person_of(network, name):
    made = network.do("createAccount", name=name)
    return Person(name=name, did=made["did"], identifier=made["handle"], password=made["password"])


def records_of(pds, did):
    """All of the account's posts by record key."""
    records, cursor = {}, None
    while True:
        answer = httpx.get(
            f"{pds}/xrpc/com.atproto.repo.listRecords",
            params={"repo": did, "collection": POST_COLLECTION, "limit": 100}
            | ({"cursor": cursor} if cursor else {}),
            trust_env=False,
        ).json()
        records |= {record["uri"].rpartition("/")[2]: record["value"] for record in answer["records"]}
        cursor = answer.get("cursor")
        if cursor is None:
            return records


@pytest.mark.timeout(1800)  # for the long form; a run has a deadline of its own
async def test_each_post_is_on_each_account_exactly_once(pdses, chaos_plan, tmp_path, monkeypatch):
    people = [person_of(pdses, name) for name in ("anna", "otto")]
    plan = chaos_plan(40)
    for name, secret in secrets_of(people).items():
        monkeypatch.setenv(name, secret)
    names = {person.did: person.name for person in people}
    target = pdses.ready["urls"]["pds"]
    with redis_server("redis-7", *APPEND_ALWAYS) as server:
        async with (
            Directory() as directory,
            LossyProxy(target, seed=plan.seed, share=LOST_SHARE, names=names) as lossy,
        ):
            for person in people:
                directory.handles[person.identifier] = person.did
                directory.homes[person.did] = lossy.url
            chaos = Chaos(plan, people, lossy, server, tmp_path, identities_url=directory.url)
            cms = await chaos.run()
        stored = QueueOfTest(server.url, NAMESPACE)
        sys.stdout.write(f"{chaos.report(cms, stored)}\n")
        records = {person.did: records_of(target, person.did) for person in people}
        await assert_sound(chaos, cms, stored, records)
        stored.redis.close()

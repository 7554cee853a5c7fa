"""Workers and the store are killed, answers are lost: each post is on each account exactly once."""

from __future__ import annotations

import sys

import pytest

from harness.lossy import LossyProxy
from harness.pds import Directory, PdsServer
from harness.queue import QueueOfTest
from harness.redis_servers import redis_server
from integration.chaos import APPEND_ALWAYS, LOST_SHARE, NAMESPACE, Chaos, Person, secrets_of
from integration.publishing import ALICE, BOB
from integration.soundness import assert_sound

PEOPLE = (
    Person(
        name="alice", did=ALICE, identifier="alice.test", password="a password of alice, never to be seen"
    ),
    Person(name="bob", did=BOB, identifier=BOB, password="a password of bob, never to be seen"),
)


@pytest.mark.timeout(1800)  # for the long form; a run has a deadline of its own
async def test_each_post_is_on_each_account_exactly_once(chaos_plan, tmp_path, monkeypatch):
    plan = chaos_plan(100)
    for name, secret in secrets_of(PEOPLE).items():
        monkeypatch.setenv(name, secret)
    names = {person.did: person.name for person in PEOPLE}
    with redis_server("valkey-9", *APPEND_ALWAYS) as server:
        async with (
            Directory() as directory,
            PdsServer(directory) as pds,
            LossyProxy(pds.url, seed=plan.seed, share=LOST_SHARE, names=names) as lossy,
        ):
            for person in PEOPLE:
                pds.host(person.did, f"{person.name}.test", person.password)
                directory.homes[person.did] = lossy.url

            def tokens_expire():
                for person in PEOPLE:
                    pds.expire(person.did)

            chaos = Chaos(
                plan,
                PEOPLE,
                lossy,
                server,
                tmp_path,
                identities_url=directory.url,
                disturb=tokens_expire,
            )
            cms = await chaos.run()
        stored = QueueOfTest(server.url, NAMESPACE)
        sys.stdout.write(f"{chaos.report(cms, stored)}\n")
        records = {
            did: {rkey: value for rkey, (value, _) in account.records.items()}
            for did, account in pds.accounts.items()
        }
        await assert_sound(chaos, cms, stored, records)
        stored.redis.close()

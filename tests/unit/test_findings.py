"""What a report amounts to: each trouble is named with its remedy, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.ops.findings import findings_of, worst
from proxy.ops.report import PostReport, ReadReport, Report, StoreReport
from proxy.resilience.breaker import Phase
from proxy.syndication.standing import AccountStanding, QueueStanding
from proxy.tally import Totals

READ = ReadReport(
    store=StoreReport(state="up"), phase=Phase.CLOSED, closed_for_s=0, limit_per_s=5, unshared=0
)
QUEUE = QueueStanding(
    ready=1,
    active=1,
    delayed=1,
    parked=1,
    dead=4,
    done=9,
    errands=0,
    dead_lately=0,
    late_s=599,
    workers=1,
    accounts=(AccountStanding(name="main", waiting=1, closed="", opens_in_s=None, unknown_s=3599),),
)
POSTS = PostReport(
    standing=QUEUE,
    trouble="",
    about={"appendonly": "yes", "maxmemory_policy": "volatile-lru"},
    durability="everysec",
    accounts=("main",),
    missing=(),
)
TOTALS = Totals({"feedproxy_processes": {("web",): 2.0, ("worker",): 1.0}}, {})
WELL = Report(at=1.0, role="web", totals=TOTALS, read=READ, posts=POSTS, expected=2)


def account(**more):
    given = {"name": "main", "waiting": 2, "closed": "", "opens_in_s": None, "unknown_s": 0.0, **more}
    return {"accounts": (AccountStanding(**given),)}


def queue(**changes):
    return replace(WELL, posts=replace(POSTS, standing=replace(QUEUE, **changes)))


def posts(**changes):
    return replace(WELL, posts=replace(POSTS, **changes))


def read(**changes):
    return replace(WELL, read=replace(READ, **changes))


def store(state, detail=""):
    return read(store=StoreReport(state=state, detail=detail))


FULL = {"used_memory": "100", "maxmemory": "100", "maxmemory_policy": "noeviction"}
IDLE = replace(QUEUE, ready=0, active=0, delayed=0, parked=0, workers=0, accounts=())


@pytest.mark.parametrize(
    ("report", "part", "remedy"),
    [
        (store("loading"), "store", "Nothing to do"),
        (store("away"), "store", "See that it runs"),
        (store("refusing", "OOM"), "store", "(OOM)"),
        (read(phase=Phase.OPEN), "upstream", "FEEDPROXY_UPSTREAM"),
        (read(phase=Phase.HALF_OPEN), "upstream", "tried again by itself"),
        (read(unshared=1), "storability", "what stands between"),
        (posts(standing=None, trouble="gone"), "queue", "See that Redis runs"),
        (queue(late_s=600), "queue", "waited for 10 minutes"),
        (queue(workers=0), "workers", "feedproxy worker"),
        (posts(standing=IDLE), "workers", "0 posts wait"),
        (posts(standing=replace(IDLE, ready=1), accounts=()), "workers", "1 posts wait"),
        (queue(dead_lately=2), "dead_letters", "retry them"),
        (queue(**account(closed="credentials")), "accounts", "The login of main was refused"),
        (queue(**account(closed="breaker", opens_in_s=1.0)), "accounts", "The PDS of main"),
        (queue(**account(unknown_s=3600)), "accounts", "No worker knows main"),
        (posts(missing=("site 'blog': X is not set",)), "secrets", "site 'blog': X is not set"),
        (posts(durability="memory"), "durability", "Set appendonly yes"),
        (posts(about={"aof_last_write_status": "err"}), "durability", "Make room on it"),
        (posts(about={"rdb_last_bgsave_status": "err"}), "durability", "send it BGSAVE"),
        (posts(about={"role": "slave"}), "durability", "Name its master"),
        (posts(about=FULL), "durability", "Raise its maxmemory"),
        (posts(about=None), "durability", "Permit INFO"),
        (posts(about={"maxmemory_policy": "allkeys-lru"}), "eviction", "volatile-lru or noeviction"),
        (replace(WELL, expected=3), "processes", "2 of 3 web processes"),
        (replace(WELL, incidents=("set aside",)), "store_data", "Check the disk"),
    ],
)
def test_each_trouble_warns_and_says_what_to_do(report, part, remedy):
    found = {finding.part: finding for finding in findings_of(report)}
    assert [name for name, finding in found.items() if finding.status != "pass"] == [part]
    assert found[part].status == "warn"
    assert remedy in found[part].output
    assert worst(list(found.values())) == "warn"


def test_all_is_well():
    found = findings_of(WELL)
    assert {finding.status for finding in found} == {"pass"}
    assert not any(finding.output for finding in found)
    assert [finding.part for finding in found] == [
        *("processes", "store", "upstream", "storability"),
        *("queue", "workers", "dead_letters", "accounts", "durability", "eviction"),
    ]


@pytest.mark.parametrize(
    "room", [{"used_memory": "99"}, {"maxmemory": "0"}, {"maxmemory_policy": "volatile-lru"}]
)
def test_a_store_that_has_room_or_can_make_some_is_not_full(room):
    about = {**POSTS.about, **FULL, **room, "role": "master", "rdb_last_bgsave_status": "ok"}
    assert worst(findings_of(posts(about=about))) == "pass"


def test_a_queue_that_nobody_uses_may_be_kept_in_memory():
    report = posts(standing=IDLE, accounts=(), about={"maxmemory_policy": "allkeys-lru"}, durability="memory")
    assert worst(findings_of(report)) == "pass"


def test_a_worker_without_the_queue_has_failed():
    worker = replace(posts(standing=None, trouble="gone"), role="worker", read=None)
    assert worst(findings_of(worker)) == "fail"


@pytest.mark.parametrize("closed", ["paused", "the PDS asked to wait"])
def test_what_people_or_the_pds_have_asked_for_is_no_trouble(closed):
    assert worst(findings_of(queue(**account(closed=closed)))) == "pass"


def test_many_accounts_are_counted():
    many = [
        AccountStanding(name=f"a{n}", waiting=1, closed="breaker", opens_in_s=1, unknown_s=0)
        for n in range(9)
    ]
    [found] = [f for f in findings_of(queue(accounts=tuple(many))) if f.status == "warn"]
    assert "a0, a1, a2, a3, a4 and 4 more" in found.output

"""Leases, fences and purges against a model: who may lead, whose answer counts, and what is dead.

Processes take the lead, lose it, die, wake up late and write all the same; answers are purged meanwhile.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from harness.clock import FakeClock
from harness.valkey import StoreOfTest
from proxy.errors import UpstreamFailure
from proxy.feeds.entry import Entry
from proxy.feeds.key import FeedKey
from proxy.feeds.purge import Purges
from proxy.feeds.shared import Lead, Led, LeftAlone, Loaded, SharedCache, Unshareable, prefix_of
from proxy.store.connection import connect
from proxy.store.link import Link
from proxy.store.news import News

KEY = FeedKey("app.bsky.feed.getAuthorFeed", (("actor", "alice.test"),))
FAILING_S = (1000.0, 1000.0)
ENTRY = Entry(
    key_id=KEY.id,
    stamp="",
    status=200,
    content_type="application/json",
    bodies={"identity": b"{}"},
    body_hash="0",
    upstream_etag=None,
    labelers=None,
    initial_age_s=0.0,
    cost_s=0.1,
    early_draw=1.0,
    dids={},
    cursor=None,
)


class Member:
    """One process: its part of the store, and the flights it leads."""

    def __init__(self, url, namespace, clock):
        self.store = connect(SecretStr(url), clock)
        self.link = Link(self.store, patience_s=20)
        prefix = prefix_of(namespace, "http://upstream.test")
        news = News(self.store.listen, f"{prefix}news")
        self.shared = SharedCache(
            self.link, clock, prefix=prefix, channel=news.channel, memory_s=60, failing_s=FAILING_S
        )
        self.purges = Purges(self.link, news, log_key=f"{prefix}{{fleet}}:purges", keep_s=1000)

    async def aclose(self):
        await self.link.aclose()
        await self.store.aclose()


@dataclass(eq=False)
class Flight:
    """`purges` is how many there were when it began."""

    member: Member
    lead: Lead
    stamp: str
    as_of: int
    purges: int


class FleetMachine(RuleBasedStateMachine):
    """Each rule is one thing that happens to the fleet; `look` compares what is there with what is known."""

    valkey_url = ""

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.store = StoreOfTest(self.valkey_url, f"fleet-{uuid.uuid4().hex[:8]}")
        self.members = [Member(self.valkey_url, self.store.namespace, self.clock) for _ in range(3)]
        self.flights: list[Flight] = []
        self.stored: Flight | None = None  # whose answer is in the store
        self.last: Flight | None = None  # who led last, and has not landed
        self.leased = False  # whether its lease runs
        self.purges = 0
        self.failing = self.alone = False

    def run(self, what):
        return self.loop.run_until_complete(asyncio.wait_for(what, 30))

    @rule(member=st.integers(0, 2), refresh=st.booleans())
    def look(self, member, refresh):
        process = self.members[member]
        self.run(process.purges.beat(process.link.run))
        floor = process.purges.floor(process.purges.names_of(KEY, {}))
        stamp = self.stored.stamp if refresh and self.stored is not None else ""
        seen = self.run(process.shared.look(KEY, uuid.uuid4().hex, known_stamp=stamp, floor=floor))
        if self.stored is not None and not refresh:
            assert isinstance(seen, Loaded)
            assert seen.entry.stamp == self.stored.stamp
            assert (seen.as_of < floor) == (self.stored.purges < self.purges), "dead or alive?"
        elif self.failing:
            assert isinstance(seen, LeftAlone)
        elif self.alone:
            assert isinstance(seen, Unshareable)
        elif self.leased and self.last is not None and self.last.purges == self.purges:
            assert isinstance(seen, Led)
        else:
            assert isinstance(seen, Lead)
            known = process.purges.known
            self.last = Flight(process, seen, f"stamp-{uuid.uuid4().hex}", known, self.purges)
            self.leased = True
            self.flights.append(self.last)

    @rule(member=st.integers(0, 2))
    def purge(self, member):
        self.run(self.members[member].purges.purge_actor("alice.test"))
        self.purges += 1

    @rule()
    def leaders_are_silent_for_too_long(self):
        self.store.let_time_pass(2)
        self.leased = False

    @rule()
    def failures_are_over(self):
        self.store.let_time_pass(2000)
        self.leased = self.failing = self.alone = False

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def renew(self, data):
        flight = data.draw(st.sampled_from(self.flights))
        kept = self.run(flight.member.shared.renew(flight.member.link.run, KEY, flight.lead))
        assert kept == (flight is self.last), "a lease was renewed that another has taken"
        self.leased = self.leased or kept

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), how=st.sampled_from(["store", "store", "fail", "alone", "release"]))
    def land(self, data, how):
        flight = data.draw(st.sampled_from(self.flights))
        self.flights.remove(flight)
        shared, lead = flight.member.shared, flight.lead
        match how:
            case "store":
                entry = replace(ENTRY, stamp=flight.stamp)
                times = {"arrived_at": self.clock.steady(), "keep_s": 100_000}
                self.run(shared.store(KEY, entry, lead, as_of=flight.as_of, **times))
            case "fail":
                self.run(shared.fail(KEY, lead, UpstreamFailure("test")))
            case "alone":
                self.run(shared.mark_unshareable(KEY, lead))
            case "release":
                self.run(shared.release(KEY, lead, None))
        if flight is not self.last:
            return  # whoever woke up late has changed nothing
        self.last, self.leased = None, False
        if how == "store":
            self.stored, self.failing, self.alone = flight, False, False
        self.failing = self.failing or how == "fail"
        if how == "alone":
            self.failing, self.alone = False, True

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def die(self, data):
        self.flights.remove(data.draw(st.sampled_from(self.flights)))

    def teardown(self):
        if hasattr(self, "members"):
            for member in self.members:
                self.run(member.aclose())
            self.store.close()
            self.loop.close()


def test_the_fleet(valkey_url):
    FleetMachine.valkey_url = valkey_url
    run_state_machine_as_test(
        FleetMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

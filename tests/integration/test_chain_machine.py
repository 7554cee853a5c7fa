"""The queue's machine with posts that are enriched and called back: no step is lost or doubled."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from integration.queue_model import WORKERS, OnItsOwnValkey
from integration.test_queue_machine import QueueMachine
from proxy.syndication.chain import CallbackOutcome, ErrandKind
from proxy.syndication.job import LIVE, Action
from proxy.syndication.queue import Stream

ENRICHED, CALLED_BACK = "124", "123"
# Why the store ends an enrichment by itself.
TOO_LATE, POISON = "not found out in time", "poison: 5 workers in a row were lost over it"


class ChainMachine(QueueMachine):
    """`unknown` are jobs that are not enriched yet, `ends` counts those of each that were told of."""

    def __init__(self):
        super().__init__()
        self.unknown: set[str] = set()
        self.errands = []
        self.ends: dict[str, int] = {}
        self.lived: set[str] = set()

    def wishes(self, post):
        return {
            "enrich": post in ENRICHED,
            "callback_url": "https://blog.example/hook" if post in CALLED_BACK else "",
        }

    # What the model makes of it.

    def add(self, job, site, post, accounts, urgent):
        super().add(job, site, post, accounts, urgent)
        self.wants(job, post)

    def replaced(self, job, site, post, accounts, urgent):
        super().replaced(job, site, post, accounts, urgent)
        self.wants(job, post)

    def wants(self, job, post):
        if post in ENRICHED:
            self.unknown.add(job)

    def is_held(self, one):
        return one.action is Action.POST and not one.intent and one.job in self.unknown

    def place(self, one):
        return float(self.stored.redis.hget(self.stored.key(f"d:{one.id}"), "score"))

    def may_go(self, ready):
        waiting, free = set(), []
        for one in sorted(ready, key=self.place):
            if one.site in waiting or self.is_held(one):
                waiting.add(one.site)  # and behind it whatever else its site has
            else:
                free.append(one)
        return free

    def accept(self, leased, worker):
        assert not self.is_held(self.known[leased.id]), "leased before it was enriched"
        super().accept(leased, worker)

    def accept_errand(self, leased, worker):
        assert leased.errand is not None
        if leased.errand.kind is ErrandKind.ENRICH:
            assert leased.errand.job in self.unknown
            assert leased.job is not None
        else:
            assert not self.lives(leased.errand.job)
            assert leased.errand.number == self.ends[leased.errand.job]
        self.errands.append((leased, worker))

    def lives(self, job):
        return any(one.state in LIVE for one in self.known.values() if one.job == job)

    def holds(self, leased):
        fields = self.stored.hash(f"d:{leased.id}")
        return (fields.get("state"), fields.get("token")) == ("active", leased.token)

    def end_by_the_store(self, *reasons):
        """What the store has ended by itself, for one of these reasons."""
        for job in list(self.unknown):
            fields = self.stored.hash(f"job:{job}")
            if fields.get("enrich") == "done":
                assert fields["unenriched"] in reasons
                self.unknown.discard(job)

    def note_ends(self):
        """Each end of a job that calls back has a number of its own; what lives is not told of."""
        views = {job: self.do(self.queue.read(job)) for job in set(self.posts.values())}
        for job, view in views.items():
            callback, before = view.job.callback, self.ends.get(job, 0)
            number = callback.number if callback else 0
            assert number >= before
            if self.lives(job):
                self.lived.add(job)
                assert number == before or number == before + 1
                assert callback is None or callback.status == "waiting"
            elif callback is not None:
                assert callback.status != "waiting"
                assert number > before or job not in self.lived
                self.lived.discard(job)
            self.ends[job] = number

    # What happens.

    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 3))
    def take_errands(self, worker, count):
        lanes = [name.removeprefix("backlog:") for name in self.stored.keys("backlog::*")]
        waiting = [lane for lane in lanes if not self.stored.hash(f"account:{lane}").get("active")]
        if self.all_paused:
            waiting = []
        leases = self.do(self.queue.take(worker, count, stream=Stream.ERRANDS))
        if worker not in self.alive:
            assert leases is None
            self.introduce(worker)
            return
        assert len(leases) == min(count, len(waiting))
        for leased in leases:
            self.accept_errand(leased, worker)

    @precondition(lambda self: self.errands)
    @rule(data=st.data(), how=st.sampled_from(["done", "again", "given up"]))
    def settle_errand(self, data, how):
        leased, worker = data.draw(st.sampled_from(self.errands))
        self.errands.remove((leased, worker))
        following = data.draw(st.sampled_from(["", worker]))
        holds, job = self.holds(leased), leased.errand.job
        if leased.errand.kind is ErrandKind.ENRICH:
            if how == "done":
                call = self.queue.enriched(leased, '{"format":1}', following=following)
            else:
                again_in_s = 1.0 if how == "again" else None
                call = self.queue.not_enriched(leased, "why", again_in_s=again_in_s, following=following)
            if holds and how != "again":
                self.unknown.discard(job)
        else:
            outcome = {"done": CallbackOutcome.DELIVERED, "again": CallbackOutcome.RETRYING}
            call = self.queue.notified(
                leased, outcome.get(how, CallbackOutcome.FAILED), "why", again_in_s=5, following=following
            )
        settled = self.do(call)
        assert settled.ours == holds
        if settled.following is not None:
            self.accept_errand(settled.following, worker)

    @rule()
    def a_moment_passes(self):
        """Long enough for another attempt to enrich."""
        self.stored.let_time_pass(2)
        self.now += 2
        self.do(self.queue.promote())

    @invariant()
    def each_chain_is_as_the_model_says(self):
        self.end_by_the_store(TOO_LATE, POISON)
        self.note_ends()


@pytest.mark.timeout(600)
class TestChainMachine(OnItsOwnValkey, ChainMachine.TestCase):
    """The machine on a Valkey of its own."""

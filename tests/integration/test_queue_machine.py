"""Anything may happen to the queue in any order: it does what a small model says, and stays sound."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from harness.queue import DAY_S, POLICY, submission
from integration.queue_model import (
    ACCOUNTS,
    LIVE_OR_DEAD,
    SITES,
    WORKERS,
    E,
    OnItsOwnValkey,
    QueueModel,
    S,
    exhausted,
)
from proxy.errors import LeaseLost
from proxy.resilience.account_breaker import AccountBreaker, Sign
from proxy.syndication.desk import Verdict
from proxy.syndication.job import Action, retry_delay_s
from proxy.syndication.overview import DeadFilter

POSTS = st.fixed_dictionaries(
    {
        "post": st.sampled_from("12345"),
        "site": st.sampled_from(SITES),
        "accounts": st.sampled_from([("a",), ("b",), ("a", "b")]),
        "wanted": st.sampled_from([True, True, False]),
        "unpublish": st.sampled_from(["keep", "delete"]),
        "urgent": st.sampled_from([False, False, True]),
    }
)
ENDS = st.sampled_from(["finish", "retry", "fail", "release"])


def some_posts(least, most):
    """What may be done to so many different posts."""
    return st.lists(POSTS, min_size=least, max_size=most, unique_by=lambda post: (post["site"], post["post"]))


class QueueMachine(QueueModel):
    """What may happen to two sites, two accounts and two workers."""

    @initialize(posts=some_posts(3, 6))
    def begin(self, posts):
        self.enqueue(posts)

    @rule(posts=some_posts(1, 3))
    def enqueue(self, posts):
        """Other posts that come at the same time travel together."""
        given = [self.submission_of(**post) for post in posts]
        for answer, post in zip(self.do_all(map(self.queue.enqueue, given)), posts, strict=True):
            self.enqueued(answer, **post)

    def submission_of(self, post, site, accounts, wanted, unpublish, urgent):
        self.revision += 1
        return submission(
            post,
            job=f"job_{self.revision:05}",  # the same in each run of a step
            site=site,
            revision=self.revision,
            accounts=accounts,
            wanted=wanted,
            skip="" if wanted else "not_published",
            unpublish=unpublish,
            priority="urgent" if urgent else "normal",
            **self.wishes(post),
        )

    def enqueued(self, answer, post, site, accounts, wanted, unpublish, urgent):
        job = self.posts.get((site, post))
        own = [one for one in self.known.values() if one.job == job]
        if job is None or (wanted and own and all(self.is_gone(one) for one in own)):
            assert answer.verdict is (Verdict.QUEUED if wanted else Verdict.SKIPPED)
            if wanted:
                self.add(answer.job, site, post, accounts, urgent)
        elif not wanted:
            for one in own:
                self.withdrawn(one, "delete" if unpublish == "delete" else "cancel")
                if unpublish == "delete":
                    self.unpublished(one)
        elif any(one.state in LIVE_OR_DEAD for one in own) or any(
            self.state_of(job, account) in (None, S.CANCELED) for account in accounts
        ):
            assert answer.verdict is Verdict.UPDATED
            self.replaced(job, site, post, accounts, urgent)
        else:
            assert answer.verdict is Verdict.RECORDED

    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 3))
    def take(self, worker, count):
        leases = self.do(self.queue.take(worker, count))
        if worker not in self.alive:
            assert leases is None
            self.introduce(worker)
            return
        eligible = [
            account
            for account in ACCOUNTS
            if self.is_open(account) and self.has_work(account) and not self.active(account)
        ]
        self.took(worker, leases)
        assert len(leases) == min(count, len(eligible))

    @precondition(lambda self: not self.leases and any(map(self.ready, ACCOUNTS)))
    @rule(worker=st.sampled_from(WORKERS))
    def go_on(self, worker):
        """What is closed opens, who is gone comes back: else hardly anything would ever be worked on."""
        self.handle_everything(paused=False)
        for account in ACCOUNTS:
            self.handle_account(account, "resume")
            self.handle_account(account, "open")
        self.introduce(worker)
        self.take(worker, len(ACCOUNTS))

    def settle(self, data):
        leased, worker = data.draw(st.sampled_from(self.leases))
        self.leases.remove((leased, worker))
        return leased, worker, self.known[leased.id], data.draw(st.sampled_from(["", worker]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def intend(self, data):
        leased, _ = data.draw(st.sampled_from(self.leases))
        one = self.known[leased.id]
        if one.action is Action.DELETE:
            return
        try:
            self.do(self.queue.intend(leased, b"{}", "cid", "rkey"))
        except LeaseLost:
            assert one.after or not one.intent, "an edit may only come before the first intent"
            return
        assert not one.after, "what was withdrawn may not be sent"
        one.attempts += not one.sent
        one.sent = one.intent = True

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=ENDS)
    def end_one(self, data, how):
        self.end(data, [how])

    @precondition(lambda self: len(self.leases) > 1)
    @rule(
        data=st.data(),
        hows=st.one_of(ENDS.map(lambda how: [how, how]), st.lists(ENDS, min_size=2, max_size=2)),
    )
    def end_several(self, data, hows):
        """Those that end in the same way travel together."""
        self.end(data, hows)

    def end(self, data, hows):
        ends = {"finish": self.finish, "retry": self.retry, "fail": self.fail, "release": self.release}
        calls, workers = zip(*(ends[how](data) for how in hows), strict=True)
        for settled, worker in zip(self.do_all(calls), workers, strict=True):
            self.after_settling(settled, worker)

    def finish(self, data):
        leased, worker, one, following = self.settle(data)
        if one.after == "delete":
            one.happens(E.RELEASE)
            one.action, one.failures, one.attempts = Action.DELETE, 0, 0
        else:
            one.happens(E.FINISH)
        one.intent, one.after = False, ""
        self.count(one, Sign.ALIVE)
        return self.queue.finish(leased, "at://x", "c", following=following), worker

    def retry(self, data):
        leased, worker, one, following = self.settle(data)
        counts = data.draw(st.booleans())
        one.failures += 1
        delay_s = retry_delay_s(one.failures, POLICY.retry_delays_s)
        self.count(one, Sign.FAILED if counts else Sign.NOTHING, used_up=delay_s is None)
        if not self.kept(one):
            one.happens(E.FAIL if delay_s is None else E.RETRY)
        one.due_at, one.lost = self.now + (delay_s or 0), 0
        return self.queue.retry(leased, "HTTP 500", counts_for_breaker=counts, following=following), worker

    def fail(self, data):
        leased, worker, one, following = self.settle(data)
        if one.after in ("cancel", "delete"):
            one.happens(E.CANCEL)
        elif not self.kept(one):
            one.failures += 1
            one.happens(E.FAIL)
        one.intent, one.after = False, ""
        self.count(one, Sign.ALIVE)
        return self.queue.fail(leased, "no", following=following), worker

    def release(self, data):
        leased, worker, one, following = self.settle(data)
        wait_s = data.draw(st.sampled_from([0, 30]))
        one.attempts -= one.sent
        if not self.kept(one):
            one.happens(E.RELEASE)
        if wait_s:
            self.close(one.account, wait_s, "rate_limited")
        call = self.queue.release(leased, wait_s=wait_s, reason="rate_limited", following=following)
        return call, worker

    @precondition(lambda self: self.lost_leases)
    @rule(data=st.data(), how=st.sampled_from(["finish", "retry", "fail", "release", "intend"]))
    def come_late(self, data, how):
        leased, worker = data.draw(st.sampled_from(self.lost_leases))
        if how == "intend":
            try:
                self.do(self.queue.intend(leased, b"late", "late", "late"))
            except LeaseLost:
                return
            raise AssertionError("a late intent was stored")
        call = {
            "finish": lambda: self.queue.finish(leased, "late", "late", following=worker),
            "retry": lambda: self.queue.retry(leased, "late", counts_for_breaker=True, following=worker),
            "fail": lambda: self.queue.fail(leased, "late", following=worker),
            "release": lambda: self.queue.release(leased, wait_s=60, reason="late", following=worker),
        }[how]
        self.after_settling(self.do(call()), worker, ours=False)

    @rule(worker=st.sampled_from(WORKERS), gracefully=st.booleans())
    def worker_goes(self, worker, gracefully):
        if worker not in self.alive:
            return
        held = [self.known[leased.id] for leased, of in self.leases if of == worker]
        if gracefully:
            self.do(self.queue.leave(worker))
        else:
            self.stored.silence_worker(worker)
            self.do(self.queue.reap())
        for one in held:
            if not self.kept(one):
                one.lost += not gracefully
                one.happens(E.FAIL if one.lost >= 5 else E.RELEASE)
        self.drop_leases(worker=worker)
        self.alive.discard(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def worker_comes(self, worker):
        if worker in self.alive:
            assert self.do(self.queue.heartbeat(worker))
        self.introduce(worker)

    @rule(seconds=st.sampled_from([20, 70, 310, 910, 3 * DAY_S]))
    def pass_time(self, seconds):
        self.stored.let_time_pass(seconds)
        self.now += seconds
        self.do(self.queue.promote())
        for one in self.known.values():
            if one.state is S.DELAYED and one.due_at <= self.now:
                one.happens(E.DUE)
        for account, (until, _) in list(self.gate.items()):
            if until <= self.now:
                del self.gate[account]
        for one in self.known.values():
            if one.state in (S.READY, S.DELAYED) and one.expires_at <= self.now:
                one.happens(E.EXPIRE)

    @rule(account=st.sampled_from(ACCOUNTS), what=st.sampled_from(["pause", "resume", "close", "open"]))
    def handle_account(self, account, what):
        if what in ("pause", "resume"):
            self.do(self.queue.pause(account, paused=what == "pause"))
            (self.paused.add if what == "pause" else self.paused.discard)(account)
        elif what == "close":
            self.do(self.queue.close_gate(account, "rate_limited", 100))
            self.close(account, 100, "rate_limited")
        else:
            self.do(self.queue.open_gate(account))
            self.gate.pop(account, None)
            self.breaker[account] = AccountBreaker()

    @rule(paused=st.booleans())
    def handle_everything(self, paused):
        self.do(self.controls.pause_all() if paused else self.controls.resume_all())
        self.all_paused = paused

    @rule(what=st.sampled_from(["retry", "drop"]), account=st.sampled_from(["", "a"]))
    def handle_dead_letters(self, what, account):
        # The oldest first, as they are stored.
        letters = self.stored.scores("dead")
        chosen = [self.known[name] for name in letters if account in ("", self.known[name].account)]
        wanted = DeadFilter(account=account)
        handle = self.controls.retry_dead if what == "retry" else self.controls.drop_dead
        self.do(exhausted(handle(wanted)))
        for one in chosen:
            self.revived(one) if what == "retry" else self.dropped(one)

    @precondition(lambda self: self.posts)
    @rule(data=st.data(), what=st.sampled_from(["cancel", "requeue"]))
    def handle_job(self, data, what):
        job = data.draw(st.sampled_from(sorted(self.posts.values())))
        own = [one for one in self.known.values() if one.job == job]
        if what == "cancel":
            self.do(self.queue.cancel(job))
            for one in own:
                self.withdrawn(one, one.after or "cancel")
        else:
            self.do(self.queue.requeue(job))
            for one in own:
                self.revived(one)

    # What must hold.

    @invariant()
    def it_is_as_the_model_says(self):
        stored = self.stored.deliveries()
        assert {name: fields["state"] for name, fields in stored.items()} == {
            name: one.state.value for name, one in self.known.items()
        }
        for name, one in self.known.items():
            assert int(stored[name].get("failures", 0)) == one.failures, name
            assert int(stored[name].get("attempts", 0)) == one.attempts, name

    @invariant()
    def it_is_sound(self):
        assert self.stored.faults() == []
        assert self.do(self.queue.reconcile()) == ("0", [])
        assert not self.sender.differing, self.sender.differing

    @invariant()
    def its_standing_is_told(self):
        told = self.do(self.queue.standing(ACCOUNTS))
        states = Counter(one.state for one in self.known.values())
        ready = told.ready + told.parked
        assert (ready, told.active, told.delayed, told.dead) == tuple(
            states[state] for state in (S.READY, S.ACTIVE, S.DELAYED, S.DEAD)
        )
        live = [fields for fields in self.stored.errands().values() if fields["state"] != "dead"]
        assert told.errands == len(live)
        assert sum(account.waiting for account in told.accounts) == ready


@pytest.mark.timeout(600)
class TestQueueMachine(OnItsOwnValkey, QueueMachine.TestCase):
    """The machine on a Valkey of its own."""

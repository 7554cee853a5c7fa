"""Anything may happen to the queue in any order: it does what a small model says, and stays sound."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import SecretStr

from harness.queue import DAY_S, POLICY, QueueOfTest, TwiceStore, submission
from harness.redis_servers import redis_server
from proxy.clock import SystemClock
from proxy.errors import LeaseLost
from proxy.resilience.account_breaker import AccountBreaker, AccountBreakerPolicy, Sign
from proxy.store.queue_store import connect_queue
from proxy.syndication.controls import Controls
from proxy.syndication.desk import Verdict
from proxy.syndication.job import TRANSITIONS, Action, DeliveryState, Event, retry_delay_s
from proxy.syndication.overview import DeadFilter
from proxy.syndication.queue import JobQueue

BREAKER = AccountBreakerPolicy(threshold=POLICY.breaker_threshold, cooldown_s=POLICY.breaker_cooldown_s)
ACCOUNTS = ("a", "b")
SITES = ("s", "t")
WORKERS = ("w1", "w2")
S, E = DeliveryState, Event
LIVE_OR_DEAD = (S.READY, S.ACTIVE, S.DELAYED, S.DEAD)


async def forgive(account):
    raise AssertionError("no login was refused here")


async def exhausted(batches):
    async for _ in batches:
        pass


@dataclass
class Known:
    """What the model knows of a delivery."""

    id: str
    job: str
    account: str
    site: str
    order: int
    state: DeliveryState = S.READY
    failures: int = 0
    attempts: int = 0
    lost: int = 0
    worker: str = ""
    sent: bool = False
    intent: bool = False
    after: str = ""
    action: Action = Action.POST
    waited: bool = False  # was ready before
    urgent: bool = False
    placed: bool = False  # among the urgent of the backlog
    due_at: float = 0.0
    expires_at: float = 0.0

    def happens(self, event: Event) -> None:
        """Only what the table allows may happen."""
        self.state = TRANSITIONS[self.state, event]
        self.sent = self.sent and self.state is S.ACTIVE


class QueueMachine(RuleBasedStateMachine):
    """Two sites, two accounts, two workers; time passes when told to."""

    server_url = ""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stored = QueueOfTest(self.server_url, f"m-{uuid.uuid4().hex[:8]}")
        self.store = connect_queue(SecretStr(self.server_url), SystemClock())
        self.sender = TwiceStore(self.store)
        self.queue = JobQueue(self.sender, SystemClock(), POLICY, namespace=self.stored.namespace)
        self.controls = Controls(self.queue, forgive)
        self.now = 0.0
        self.known: dict[str, Known] = {}
        self.posts: dict[tuple[str, str], str] = {}
        self.revision = 0
        self.leases = []  # those that hold
        self.lost_leases = []
        self.gate: dict[str, tuple[float, str]] = {}  # until when, why
        self.paused: set[str] = set()
        self.all_paused = False
        self.hurried = defaultdict(int)  # how many urgent ones went in a row while others waited
        self.breaker = defaultdict(AccountBreaker)
        self.alive: set[str] = set()
        for worker in WORKERS:
            self.introduce(worker)

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def introduce(self, worker):
        self.do(self.queue.introduce(worker, dict.fromkeys(ACCOUNTS, f"fp-{worker}")))
        self.alive.add(worker)

    def wishes(self, _post):
        """What a submission has beside that."""
        return {}

    # What the model makes of it.

    def is_open(self, account):
        return not self.all_paused and account not in self.paused and account not in self.gate

    def close(self, account, for_s, reason):
        until = self.now + for_s
        if self.gate.get(account, (0.0, ""))[0] < until:
            self.gate[account] = (until, reason)

    def ready(self, account):
        return [one for one in self.known.values() if one.account == account and one.state is S.READY]

    def may_go(self, ready):
        """Which of them may be leased, if it is the turn of any of them."""
        return ready

    def has_work(self, account):
        """Whether something of it may be leased."""
        return bool(self.may_go(self.ready(account)))

    def active(self, account):
        return [one for one in self.known.values() if one.account == account and one.state is S.ACTIVE]

    def accept(self, leased, worker):
        one = self.known[leased.id]
        ready = self.ready(one.account)
        others = [other for other in ready if not other.placed]
        kind = (one.site, one.placed)
        firsts = [other.order for other in ready if (other.site, other.placed) == kind and not other.waited]
        urgent_ones_wait = any(other.placed for other in self.may_go(ready))
        if one.placed:
            assert self.hurried[one.account] < 3 or not self.may_go(others), "the others have no turn"
        else:
            assert not urgent_ones_wait or self.hurried[one.account] >= 3, "the urgent go first"
        self.hurried[one.account] = self.hurried[one.account] + 1 if one.placed and others else 0
        assert one.waited or one.order == min(firsts), "not in the order of first attempts"
        assert not self.active(one.account), "two of one account at a time"
        assert self.is_open(one.account), "leased behind a closed gate"
        one.happens(E.LEASE)
        one.worker, one.waited = worker, True
        assert leased.delivery.failures == one.failures
        assert leased.delivery.attempts == one.attempts
        assert bool(leased.delivery.intent) == one.intent
        assert (leased.delivery.after, leased.delivery.action) == (one.after, one.action)
        self.leases.append((leased, worker))

    def took(self, worker, leases):
        for leased in leases:
            self.accept(leased, worker)

    def after_settling(self, settled, worker, *, ours=True):
        assert settled.ours == ours
        if settled.following is not None:
            self.accept(settled.following, worker)

    def drop_leases(self, *, worker=None, ids=()):
        gone = [pair for pair in self.leases if pair[1] == worker or pair[0].id in ids]
        self.leases = [pair for pair in self.leases if pair not in gone]
        self.lost_leases += gone

    def count(self, one, sign, *, used_up=False):
        breaker = self.breaker[one.account].record(sign, one.job, self.now, BREAKER, used_up=used_up)
        if breaker.open_until > self.breaker[one.account].open_until:
            self.close(one.account, POLICY.breaker_cooldown_s, "breaker")
        self.breaker[one.account] = breaker

    # What happens.

    @rule(
        post=st.sampled_from("12345"),
        site=st.sampled_from(SITES),
        accounts=st.sampled_from([("a",), ("b",), ("a", "b")]),
        wanted=st.sampled_from([True, True, False]),
        unpublish=st.sampled_from(["keep", "delete"]),
        urgent=st.sampled_from([False, False, True]),
    )
    def enqueue(self, post, site, accounts, wanted, unpublish, urgent):
        self.revision += 1
        given = submission(
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
        answer = self.do(self.queue.enqueue(given))
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

    def is_gone(self, one):
        """Whether nothing of it is on the account, nor will be."""
        return one.state is S.CANCELED or (one.state is S.DONE and one.action is Action.DELETE)

    def state_of(self, job, account):
        one = self.known.get(f"{job}:{account}")
        return one.state if one else None

    def next_order(self):
        return max((one.order for one in self.known.values()), default=0) + 1

    def add(self, job, site, post, accounts, urgent):
        self.posts[site, post] = job
        for account in accounts:
            name = f"{job}:{account}"
            self.known[name] = Known(
                name, job, account, site, self.next_order(), expires_at=self.now + 7 * DAY_S
            )
            self.known[name].urgent = self.known[name].placed = urgent

    def prioritised(self, one, urgent):
        if one.state is S.ACTIVE or one.urgent == urgent:
            return
        one.urgent = urgent
        if one.state is S.READY:
            one.placed, one.waited, one.order = urgent, False, self.next_order()

    def replaced(self, job, site, post, accounts, urgent):
        own = [one for one in self.known.values() if one.job == job]
        for one in own:
            if one.account not in accounts:
                self.withdrawn(one, "cancel")
            elif one.action is Action.DELETE:
                self.restored(one)
            elif one.state is S.CANCELED:
                one.happens(E.REQUEUE)
                self.add(job, site, post, (one.account,), urgent)
            else:
                one.after = ""
                self.prioritised(one, urgent)
        for account in accounts:
            if self.state_of(job, account) is None:
                self.add(job, site, post, (account,), urgent)
            elif self.state_of(job, account) is S.DEAD:
                self.revived(self.known[f"{job}:{account}"])

    def withdrawn(self, one, after):
        if one.action is Action.DELETE or one.state not in LIVE_OR_DEAD:
            return
        if one.intent:
            one.after = after
            self.revived(one, for_s=DAY_S)
        else:
            one.happens(E.CANCEL)
            self.drop_leases(ids=(one.id,))

    def unpublished(self, one):
        if one.action is Action.DELETE:
            one.after = ""
        elif one.state is S.DONE:
            one.happens(E.UNPUBLISH)
            one.action = Action.DELETE
            one.failures = one.attempts = one.lost = 0
            one.waited, one.order = False, self.next_order()
            one.placed = one.urgent
            one.expires_at = self.now + 7 * DAY_S

    def restored(self, one):
        if one.state is S.ACTIVE:
            one.after = "keep"
        elif one.state in LIVE_OR_DEAD:
            one.happens(E.RESTORE)
            one.action = Action.POST

    def kept(self, one):
        """Whether a deletion was called off while it was under way; then it ends."""
        if one.after != "keep":
            return False
        one.happens(E.RESTORE)
        one.action, one.after = Action.POST, ""
        return True

    def revived(self, one, for_s=7 * DAY_S):
        if one.state is S.DEAD:
            one.happens(E.REQUEUE)
            one.failures = one.lost = 0
            # It stands behind all that wait now.
            one.waited, one.order = False, self.next_order()
            one.placed = one.urgent
            one.expires_at = self.now + for_s

    def dropped(self, one):
        if one.action is Action.DELETE:
            self.restored(one)
        else:
            one.happens(E.CANCEL)
            one.intent, one.after = False, ""

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
    @rule(data=st.data())
    def finish(self, data):
        leased, worker, one, following = self.settle(data)
        if one.after == "delete":
            one.happens(E.RELEASE)
            one.action, one.failures, one.attempts = Action.DELETE, 0, 0
        else:
            one.happens(E.FINISH)
        one.intent, one.after = False, ""
        self.count(one, Sign.ALIVE)
        self.after_settling(self.do(self.queue.finish(leased, "at://x", "c", following=following)), worker)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), counts=st.booleans())
    def retry(self, data, counts):
        leased, worker, one, following = self.settle(data)
        one.failures += 1
        delay_s = retry_delay_s(one.failures, POLICY.retry_delays_s)
        self.count(one, Sign.FAILED if counts else Sign.NOTHING, used_up=delay_s is None)
        if not self.kept(one):
            one.happens(E.FAIL if delay_s is None else E.RETRY)
        one.due_at, one.lost = self.now + (delay_s or 0), 0
        settled = self.do(
            self.queue.retry(leased, "HTTP 500", counts_for_breaker=counts, following=following)
        )
        self.after_settling(settled, worker)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def fail(self, data):
        leased, worker, one, following = self.settle(data)
        if one.after in ("cancel", "delete"):
            one.happens(E.CANCEL)
        elif not self.kept(one):
            one.failures += 1
            one.happens(E.FAIL)
        one.intent, one.after = False, ""
        self.count(one, Sign.ALIVE)
        self.after_settling(self.do(self.queue.fail(leased, "no", following=following)), worker)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), wait_s=st.sampled_from([0, 30]))
    def release(self, data, wait_s):
        leased, worker, one, following = self.settle(data)
        one.attempts -= one.sent
        if not self.kept(one):
            one.happens(E.RELEASE)
        if wait_s:
            self.close(one.account, wait_s, "rate_limited")
        settled = self.do(
            self.queue.release(leased, wait_s=wait_s, reason="rate_limited", following=following)
        )
        self.after_settling(settled, worker)

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

    def teardown(self):
        self.stored.close()
        self.do(self.queue.aclose())
        self.do(self.store.aclose())
        self.loop.close()


QueueMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.timeout(600)
class TestQueueMachine(QueueMachine.TestCase):
    """The machine on a Valkey of its own."""

    @classmethod
    def setUpClass(cls):
        cls._server = redis_server("valkey-9")
        QueueMachine.server_url = cls._server.__enter__().url

    @classmethod
    def tearDownClass(cls):
        cls._server.__exit__(None, None, None)

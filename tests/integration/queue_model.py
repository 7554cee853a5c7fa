"""What a queue is to do, in memory, beside a real one that is told the same."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine
from pydantic import SecretStr

from harness.queue import DAY_S, POLICY, QueueOfTest, TwiceStore
from harness.redis_servers import redis_server
from proxy.clock import SystemClock
from proxy.resilience.account_breaker import AccountBreaker, AccountBreakerPolicy
from proxy.store.queue_store import connect_queue
from proxy.syndication.controls import Controls
from proxy.syndication.job import TRANSITIONS, Action, DeliveryState, Event
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


class QueueModel(RuleBasedStateMachine):
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

    def do_all(self, coroutines):
        """At the same time; their answers."""

        async def gathered():
            return await asyncio.gather(*coroutines)

        return self.do(gathered())

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

    def teardown(self):
        self.stored.close()
        self.do(self.queue.aclose())
        self.do(self.store.aclose())
        self.loop.close()


class OnItsOwnValkey:
    """What a machine becomes a test with: `class TestX(OnItsOwnValkey, X.TestCase)`."""

    settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )

    @classmethod
    def setUpClass(cls):
        cls._server = redis_server("valkey-9")
        QueueModel.server_url = cls._server.__enter__().url

    @classmethod
    def tearDownClass(cls):
        cls._server.__exit__(None, None, None)

"""One budget, one breaker, one wish to be left alone for all processes around a store."""

from __future__ import annotations

import asyncio
import uuid

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.fleet import everywhere, fleet
from harness.proxy import feed
from harness.upstream import Response, xrpc_error
from proxy.resilience.breaker import Admission, Breaker, BreakerPolicy
from proxy.resilience.limiter import Rank, ahead_of, next_rank
from proxy.resilience.shares import Shares
from proxy.store.scripts import script


async def test_the_budget_is_the_fleets(upstream, store):
    """Four processes on more cold keys than the budget carries: no window has more than it allows."""
    per_s, burst, window_s = 20, 6, 1.0
    limits = {"UPSTREAM_RPS": per_s, "UPSTREAM_BURST": burst, "UPSTREAM_TIMEOUT": 4}
    async with fleet(4, upstream.url, store, **limits) as proxies:
        asked = (proxies[n % 4].get(feed(f"a{n}.test")) for n in range(80))
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    at = sorted(request.at for request in upstream.requests)
    assert len(at) >= burst + per_s * window_s, "the budget was not used"
    busiest = max(sum(start <= each < start + window_s for each in at) for start in at)
    assert busiest <= burst + per_s * window_s + 2


async def test_one_is_told_to_wait_and_nobody_calls(upstream, store, clock):
    async with fleet(3, upstream.url, store, clock=clock) as proxies:
        upstream.answer = lambda _: xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": "30"})
        assert (await proxies[0].get(feed())).status_code == 503
        upstream.answer = upstream.feed
        await proxies[0].landed()
        asked = upstream.count
        for number, proxy in enumerate(proxies):
            refused = await proxy.get(feed(f"a{number}.test"))
            assert refused.status_code == 503
            assert 25 <= int(refused.headers["retry-after"]) <= 30
        assert upstream.count == asked
        await proxies[0].pass_time(31)
        for number, proxy in enumerate(proxies):
            assert (await proxy.get(feed(f"b{number}.test"))).status_code == 200


async def test_the_breaker_and_its_probe_are_the_fleets(upstream, store, clock):
    upstream.answer = lambda _: Response(close=True)
    limits = {"BREAKER_THRESHOLD": 3, "BREAKER_COOLDOWN": 60, "RETRY_MAX": 1}
    async with fleet(3, upstream.url, store, clock=clock, **limits) as proxies:
        for number, proxy in enumerate(proxies):
            assert (await proxy.get(feed(f"a{number}.test"))).status_code == 502
        await proxies[0].landed()
        refused = await everywhere(proxies, 2, feed("b.test"), feed("c.test"))
        assert {answer.status_code for answer in refused} == {503}
        assert upstream.count == 3
        await proxies[0].pass_time(61)
        upstream.answer = lambda _: Response(close=True, delay_s=0.1)
        await asyncio.gather(*(proxy.get(feed(f"d{n}.test")) for n, proxy in enumerate(proxies * 3)))
        assert upstream.count == 4, "one probe, no more"
        await proxies[0].pass_time(61)
        upstream.answer = upstream.feed
        assert (await proxies[1].get(feed("e.test"))).status_code == 200
        await proxies[0].landed()
        for number, proxy in enumerate(proxies):
            assert (await proxy.get(feed(f"f{number}.test"))).status_code == 200


async def test_the_concurrency_bound_is_the_fleets(upstream, store):
    running = peak = 0

    def slow(request):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        asyncio.get_running_loop().call_later(0.03, leave)
        return Response(body=upstream.feed(request).body, delay_s=0.03)

    def leave():
        nonlocal running
        running -= 1

    upstream.answer = slow
    async with fleet(3, upstream.url, store, UPSTREAM_CONCURRENCY=4) as proxies:
        answers = await asyncio.gather(*(proxies[n % 3].get(feed(f"a{n}.test")) for n in range(30)))
    assert {answer.status_code for answer in answers} == {200}
    assert peak == 4


class Scripts:
    """The gate's scripts, called one by one, on a gate into which no token falls but when a test lets it."""

    BURST = 4
    HOUR_US = 3_600_000_000
    LATEST_US = 10**18
    POLICY = BreakerPolicy(threshold=3, cooldown_s=600.0, probe_s=300.0)

    def __init__(self, url):
        self._client = redis.Redis.from_url(url)
        parts = ("gate", "slots", "refreshes", "misses", "doubtful", "due", "rounds")
        self._prefix = f"oracle:{{{uuid.uuid4().hex}}}:"
        self._keys = [f"{self._prefix}{part}" for part in parts]

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self._client.delete(*self._keys, *self._client.keys(self._spent("*")))
        self._client.close()

    def call(self, name, *args, more_keys=()):
        what = script(name, libraries=("gate",))
        keys = (*self._keys, *more_keys)
        return self._client.eval(what.text, len(keys), *keys, self.HOUR_US, *args)[5:]

    def ask(self, name, rank, client="one", place=b"", concurrency=1000, per_min=0, per_s=1e-9):
        """What is said to who asks for a turn."""
        rate_and_bound = (per_s, self.BURST, concurrency)
        patience = (self.HOUR_US, 1_000_000, self.HOUR_US)
        given = (*rate_and_bound, *patience, "nowhere", place, per_min)
        who = (name, int(rank), client, self.LATEST_US, "0")
        return self.call("gate_enter", *who, *given, more_keys=[self._spent(client)])

    def enter(self, name, rank, client="one", place=b"", concurrency=1000):
        """Whether a turn is given, else the place in the queue."""
        said, *more = self.ask(name, rank, client, place, concurrency)
        return said == b"go", more[1] if len(more) == 2 else b""

    def age_spent(self, seconds, client):
        """As if what the client has spent was spent so long before, or after."""
        key = self._spent(client)
        for index, spent_at in enumerate(self._client.lrange(key, 0, -1)):
            self._client.lset(key, index, int(spent_at) - round(seconds * 1e6))

    def spent(self, client):
        return self._client.llen(self._spent(client))

    def forgotten_in_s(self, client):
        return self._client.pttl(self._spent(client)) / 1000

    def _spent(self, client):
        return f"{self._prefix}spent:{client}"

    def leave(self, name):
        self.call("gate_leave", name, 1000, "nowhere")

    def refill(self, tokens):
        if (had := self._client.hget(self._keys[0], "tokens")) is not None:
            self._client.hset(self._keys[0], "tokens", min(self.BURST, float(had) + tokens))

    def pass_time(self, seconds):
        if self._client.hexists(self._keys[0], "refuse_until_at"):
            self._client.hincrby(self._keys[0], "refuse_until_at", -round(seconds * 1e6))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from(Rank)),
            st.tuples(st.just("again"), st.integers(0, 30)),
            st.tuples(st.just("leave"), st.integers(0, 30)),
            st.tuples(st.just("refill"), st.integers(1, 3)),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_turns_are_given_as_the_pure_limiter_says(valkey_url, steps):
    waiting: dict[Rank, list[str]] = {rank: [] for rank in Rank}
    places: dict[str, bytes] = {}
    tokens, last = float(Scripts.BURST), Rank.MISS

    def counts():
        return {rank: len(names) for rank, names in waiting.items()}

    with Scripts(valkey_url) as scripts:
        for number, (step, what) in enumerate(steps):
            everyone = [(rank, name) for rank, names in waiting.items() for name in names]
            if step == "refill":
                scripts.refill(what)
                tokens = min(Scripts.BURST, tokens + what)
                continue
            if step == "ask":
                rank, name = what, f"w{number}"
                waiting[rank].append(name)
            elif everyone:
                rank, name = everyone[what % len(everyone)]
            else:
                continue
            if step == "leave":
                scripts.leave(name)
                waiting[rank].remove(name)
                continue
            ahead = ahead_of(rank, counts(), last, waiting[rank].index(name))
            went, places[name] = scripts.enter(name, rank, place=places.get(name, b""))
            assert went == (tokens >= ahead + 1)
            if went:
                if ahead == 0:
                    assert rank is next_rank(counts(), last)
                waiting[rank].remove(name)
                tokens, last = tokens - 1, rank


@given(
    st.lists(
        st.one_of(
            st.just(("admit", None)),
            st.tuples(st.just("end"), st.tuples(st.integers(0, 9), st.sampled_from([True, False, None]))),
            st.tuples(st.just("pass"), st.sampled_from([1.0, 299.0, 301.0, 599.0, 601.0])),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_breaker_does_as_the_pure_one(valkey_url, steps):
    breaker, now, under_way = Breaker(), 0.0, []
    policy = Scripts.POLICY
    with Scripts(valkey_url) as scripts:
        for step, what in steps:
            if step == "pass":
                now += what
                scripts.pass_time(what)
            elif step == "admit":
                breaker, ticket = breaker.admit(now, policy)
                [said] = scripts.call("gate_admit", round(policy.probe_s * 1e6))
                assert said.decode() == ticket.admission.value
                if ticket.admission is not Admission.REFUSE:
                    under_way.append(ticket)
            elif under_way:
                index, alive = what
                ticket = under_way.pop(index % len(under_way))
                if alive is None:
                    breaker = breaker.abandon(ticket, now)
                else:
                    breaker = breaker.record(ticket, now, policy, alive=alive)
                told = "" if alive is None else str(int(alive))
                limits = (policy.threshold, round(policy.cooldown_s * 1e6), "nowhere")
                scripts.call("gate_record", ticket.probe, told, *limits)


def test_misses_of_different_clients_take_turns(valkey_url):
    with Scripts(valkey_url) as scripts:
        for number in range(Scripts.BURST):
            assert scripts.enter(f"first{number}", Rank.MISS, "greedy")[0]
        for number in range(10):
            assert not scripts.enter(f"greedy{number}", Rank.MISS, "greedy")[0]
        for name in ("a", "b"):
            assert not scripts.enter(name, Rank.MISS, name)[0]
        scripts.refill(3)
        gone = [name for name in ("greedy0", "a", "b", "greedy1") if scripts.enter(name, Rank.MISS)[0]]
    assert gone == ["greedy0", "a", "b"]


def test_the_doubtful_of_different_clients_take_turns_and_go_last(valkey_url):
    with Scripts(valkey_url) as scripts:
        for number in range(Scripts.BURST):
            assert scripts.enter(f"first{number}", Rank.DOUBTFUL, "greedy")[0]
        for number in range(10):
            assert not scripts.enter(f"greedy{number}", Rank.DOUBTFUL, "greedy")[0]
        for name, rank in (("a", Rank.DOUBTFUL), ("b", Rank.MISS), ("c", Rank.REFRESH)):
            assert not scripts.enter(name, rank, name)[0]
        scripts.refill(4)
        ranks = {"b": Rank.MISS, "c": Rank.REFRESH}
        gone = [
            name
            for name in ("greedy1", "c", "b", "greedy0", "a")
            if scripts.enter(name, ranks.get(name, Rank.DOUBTFUL))[0]
        ]
    assert gone == ["c", "b", "greedy0", "a"]


@given(
    st.integers(1, 5),
    st.lists(
        st.one_of(
            st.tuples(st.just("go"), st.sampled_from(["one", "other"])),
            st.tuples(st.just("pass"), st.sampled_from([0.5, 20.0, 59.0, 61.0])),
        ),
        max_size=40,
    ),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shares_are_as_the_pure_ones(valkey_url, limit, steps):
    shares, now = Shares(limit), 1000.0
    with Scripts(valkey_url) as scripts:
        for number, (step, what) in enumerate(steps):
            if step == "pass":
                now += what
                for client in ("one", "other"):
                    scripts.age_spent(what, client)
                continue
            scripts.refill(1)
            wait_s = shares.spent_for_s(what, now)
            said, *more = scripts.ask(f"w{number}", Rank.MISS, what, per_min=limit)
            if wait_s > 0:
                # The store's clock goes on while the steps are taken.
                assert said == b"share"
                assert wait_s - 5 < int(more[0]) / 1e6 <= wait_s
                continue
            assert said == b"go"
            shares.take(what, now)
            assert scripts.spent(what) <= limit
            assert 55 < scripts.forgotten_in_s(what) <= 60


def test_who_does_not_pay_has_no_share(valkey_url):
    with Scripts(valkey_url) as scripts:
        assert scripts.ask("a", Rank.MISS, "one", per_min=1)[0] == b"go"
        assert scripts.ask("b", Rank.MISS, "one", per_min=1)[0] == b"share"
        assert scripts.ask("c", Rank.REFRESH, "one", per_min=0)[0] == b"go"
        assert scripts.ask("d", Rank.MISS, "other", per_min=1)[0] == b"go"
        assert scripts.spent("one") == 1


def test_what_was_refused_takes_no_turn_and_what_waits_has_not_paid(valkey_url):
    with Scripts(valkey_url) as scripts:
        for number in range(Scripts.BURST):
            assert scripts.enter(f"first{number}", Rank.MISS)[0]
        waits = [scripts.ask(f"w{number}", Rank.MISS, "one", per_min=1) for number in range(3)]
        assert [said for said, *_ in waits] == [b"wait"] * 3
        assert scripts.spent("one") == 0
        scripts.refill(2)
        again = [scripts.ask(f"w{n}", Rank.MISS, "one", waits[n][2], per_min=1)[0] for n in range(3)]
        assert again == [b"go", b"share", b"share"]
        # Nobody stands before the other any more.
        assert scripts.ask("other", Rank.MISS, "other", per_min=1)[0] == b"go"


def test_who_asks_for_more_than_its_share_at_once_is_refused_for_its_own_sake(valkey_url):
    """What the budget has not is a client's own affair only when it has asked for more than it may have."""

    class Impatient(Scripts):
        LATEST_US = 10_000_000

    def ask(name, client, per_min=8):
        return scripts.ask(name, Rank.MISS, client, per_min=per_min, per_s=0.25)[0]

    with Impatient(valkey_url) as scripts:
        assert [ask(f"first{n}", "greedy") for n in range(Scripts.BURST)] == [b"go"] * Scripts.BURST
        # Two turns can come in time; of the share of eight there is nothing left after two more.
        said = [ask(f"greedy{n}", "greedy") for n in range(6)]
        assert said == [b"wait", b"wait", b"budget", b"budget", b"share", b"share"]
        assert ask("exempt", "exempt", per_min=0) == b"wait"
        # Others have but one turn each, which does not come in time: that is nobody's fault.
        assert [ask(f"other{n}", f"other{n}", per_min=1) for n in range(4)] == [b"budget"] * 4
        assert [ask(f"other{n}", "other0", per_min=1) for n in range(4)] == [b"budget"] * 4


def test_a_clock_that_was_set_back_locks_nobody_out(valkey_url):
    with Scripts(valkey_url) as scripts:
        assert scripts.ask("a", Rank.MISS, "one", per_min=1)[0] == b"go"
        scripts.age_spent(-3600, "one")
        assert scripts.ask("b", Rank.MISS, "one", per_min=1)[0] == b"go"
        assert scripts.spent("one") == 1


def test_a_slot_dies_with_its_holder(valkey_url):
    with Scripts(valkey_url) as scripts:
        assert scripts.enter("holder", Rank.MISS, concurrency=1)[0]
        assert not scripts.enter("other", Rank.MISS, concurrency=1)[0]
        # As if it had been silent for longer than a slot lives.
        scripts.call("gate_beat", -1, scripts.BURST, 0, "holder")
        assert scripts.enter("other", Rank.MISS, concurrency=1)[0]


def test_turns_that_were_had_without_asking_are_the_fleets_all_the_same(valkey_url):
    with Scripts(valkey_url) as scripts:
        assert scripts.enter("first", Rank.MISS)[0]  # and three are left
        scripts.call("gate_beat", 1, scripts.BURST, 2)
        assert scripts.enter("second", Rank.MISS)[0]
        assert not scripts.enter("third", Rank.MISS)[0]


def test_no_more_than_a_burst_is_owed_after_a_long_time_alone(valkey_url):
    with Scripts(valkey_url) as scripts:
        assert scripts.enter("first", Rank.MISS)[0]
        scripts.call("gate_beat", 1, scripts.BURST, 10_000)
        scripts.refill(scripts.BURST)
        assert not scripts.enter("second", Rank.MISS)[0]
        scripts.refill(1)
        assert scripts.enter("second", Rank.MISS)[0]

"""The whole read path against a model: whatever happens in whatever order, it serves what it may and says so.

The upstream's content changes, it fails, accounts vanish, time passes, the process restarts. The model knows
what the upstream would have said at each instant, so it can tell whether an answer's age is the truth. The
store has a clock of its own, which nobody can stop: that of the process runs beside it, and what a step took
in all is how far the instants of the model are from those of the proxy.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from harness.clock import RunningClock
from harness.proxy import feed, running_proxy
from harness.upstream import Response, Upstream, json_response, xrpc_error
from harness.valkey import StoreOfTest

TTL_S, SWR_S, SIE_S, NEGATIVE_TTL_S = 100, 1000, 5000, 60
KEYS = [feed("a.test"), "/xrpc/app.bsky.actor.getProfile?actor=a.test"]
TROUBLES = {
    "none": None,
    "500": xrpc_error(500, "InternalServerError"),
    "503": xrpc_error(503, "NotNow"),
    "429": xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": "20"}),
    "closes": Response(close=True),
    "html": Response(body=b"<html>", headers={"Content-Type": "text/html"}),
    "cut": Response(body=b'{"version":1}', cut_at=3),
    "empty": Response(body=b""),
}

keys = st.sampled_from(KEYS)


class CacheMachine(RuleBasedStateMachine):
    """Each rule is one thing that happens; `ask` compares what is served with what is known."""

    valkey_url: str

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.clock = RunningClock()
        self.slowest_s = 0.0
        self.store = StoreOfTest(self.valkey_url, f"machine-{uuid.uuid4().hex[:8]}")
        self.version = dict.fromkeys(KEYS, 1)
        # What the upstream had to say of a key, and from when on.
        self.history = {key: [(self.clock.steady(), 1)] for key in KEYS}
        self.gone = dict.fromkeys(KEYS, False)
        self.trouble = "none"
        self.confirmed_at = dict.fromkeys(KEYS)
        self.stack = AsyncExitStack()
        self.run(self.start())

    def run(self, what):
        began_at = time.monotonic()
        try:
            return self.loop.run_until_complete(asyncio.wait_for(what, 30))
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_at)

    async def start(self):
        self.upstream = await self.stack.enter_async_context(Upstream())
        self.upstream.answer = self.answer
        await self.start_proxy()

    async def start_proxy(self):
        self.proxy_stack = AsyncExitStack()
        self.proxy = await self.proxy_stack.enter_async_context(
            running_proxy(
                self.upstream.url,
                self.store,
                clock=self.clock,
                CACHE_TTL=TTL_S,
                STALE_WHILE_REVALIDATE=SWR_S,
                STALE_IF_ERROR=SIE_S,
                NEGATIVE_TTL=NEGATIVE_TTL_S,
                BREAKER_COOLDOWN=30,
            )
        )

    def answer(self, request):
        key = request.target
        if TROUBLES[self.trouble] is not None:
            return TROUBLES[self.trouble]
        if self.gone[key]:
            self.confirmed_at[key] = None
            return xrpc_error(400, "AccountDeactivated", "gone")
        self.confirmed_at[key] = self.clock.steady()
        return json_response({"key": key, "version": self.version[key]})

    @rule(trouble=st.sampled_from(sorted(TROUBLES)))
    def have_trouble(self, trouble):
        self.trouble = trouble

    @rule()
    def recover(self):
        self.trouble = "none"

    @rule(key=keys, gone=st.booleans())
    def deactivate(self, key, gone):
        self.gone[key] = gone

    @rule(seconds=st.sampled_from([1, 30, 61, 95, 130, 1200, 3000, 7000]), edited=st.booleans())
    def pass_time(self, seconds, edited):
        if edited:
            for key in KEYS:
                self.version[key] += 1
                self.history[key].append((self.clock.steady(), self.version[key]))
        self.run(self.proxy.pass_time(seconds))

    @rule()
    def restart(self):
        self.run(self.proxy.landed())
        self.run(self.proxy_stack.aclose())
        self.run(self.start_proxy())

    @rule(key=keys, count=st.integers(1, 4))
    def ask(self, key, count):
        confirmed_at = self.confirmed_at[key]
        answers = self.run(self.proxy.together(count, key))
        now = self.clock.steady()
        for answer in answers:
            self.check(key, answer, now)
            if confirmed_at is not None and now - confirmed_at < TTL_S * 0.9 + SIE_S and not self.gone[key]:
                assert answer.status_code == 200, "an error while a copy existed"
        assert len({answer.content for answer in answers}) == 1

    def check(self, key, answer, now):
        said = answer.headers["cache-status"]
        if answer.status_code == 200:
            assert answer.json()["key"] == key
            age_s = int(answer.headers["age"])
            assert 0 <= age_s <= TTL_S * 1.1 + SIE_S
            assert answer.json()["version"] in self.versions_around(key, now - age_s), (
                "the age is not the truth"
            )
            if "ttl=" in said:
                ttl_s = int(said.partition("ttl=")[2].partition(";")[0])
                assert (ttl_s < 0) == ("stale" in said) or ttl_s == 0
                assert TTL_S * 0.9 - 1 <= age_s + ttl_s <= TTL_S * 1.1 + 1
        elif answer.status_code == 400:
            assert answer.json()["error"] == "AccountDeactivated"
        else:
            assert answer.status_code in (502, 503)
            assert answer.json()["error"] in ("UpstreamFailure", "UpstreamUnavailable")
            assert answer.headers["cache-control"] == "no-store"

    def versions_around(self, key, instant):
        """What the upstream had at `instant`, which an age tells to the second, or near it."""
        earliest, latest = instant - 1 - 2 * self.slowest_s, instant + 2 * self.slowest_s
        before = [version for at, version in self.history[key] if at < earliest][-1:]
        return {*before, *(version for at, version in self.history[key] if earliest <= at <= latest)}

    @invariant()
    def nothing_piles_up(self):
        if hasattr(self, "proxy"):
            assert len(self.store.keys()) <= len(KEYS)

    def teardown(self):
        if hasattr(self, "stack"):
            self.run(self.proxy_stack.aclose())
            self.run(self.stack.aclose())
            self.store.close()
            self.loop.close()


@pytest.fixture
def machine(valkey_url):
    CacheMachine.valkey_url = valkey_url
    return CacheMachine


def test_cache(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

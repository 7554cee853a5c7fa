"""How the upstream is treated: limits, retries, its wish to be left alone, the breaker, deadlines."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest

from harness.proxy import feed
from harness.upstream import Response, json_response, xrpc_error
from harness.waiting import until
from proxy.version import VERSION


async def test_we_say_who_we_are_and_nothing_of_the_client(start, upstream):
    async with start(CONTACT="ops@example.com") as proxy:
        await proxy.get(
            feed(),
            authorization="Bearer secret",
            cookie="a=b",
            user_agent="Browser",
            x_forwarded_for="203.0.113.9",
            referer="https://site.example/private",
            origin="https://site.example",
            accept_language="fr",
            if_none_match='"x"',
        )
    sent = upstream.requests[0].headers
    assert sent["user-agent"] == f"feedproxy/{VERSION} (ops@example.com)"
    assert set(sent) == {"host", "user-agent", "accept", "accept-encoding"}


async def test_labelers_and_language_are_forwarded_where_they_count(start, upstream):
    generator = "/xrpc/app.bsky.feed.getFeed?feed=at://did:plc:a/app.bsky.feed.generator/x"
    async with start() as proxy:
        await proxy.get(
            generator,
            atproto_accept_labelers="did:plc:b;redact, did:plc:a",
            accept_language="fr-CA, en;q=0.5",
        )
        await proxy.get(generator, accept_language="de")
        await proxy.get(
            generator, atproto_accept_labelers="did:plc:a,did:plc:b ; redact", accept_language="fr,en"
        )
    assert upstream.count in (2, 3)
    assert upstream.requests[0].headers["atproto-accept-labelers"] == "did:plc:a,did:plc:b;redact"
    assert upstream.requests[0].headers["accept-language"] == "fr,en"
    assert "atproto-accept-labelers" not in upstream.requests[1].headers


WAITS = {
    "Retry-After in seconds": lambda: {"Retry-After": "5"},
    "Retry-After as a date": lambda: {"Retry-After": formatdate(time.time() + 5, usegmt=True)},
    "Retry-After as a date, by a clock an hour ahead": lambda: {
        "Date": formatdate(time.time() + 3600, usegmt=True),
        "Retry-After": formatdate(time.time() + 3605, usegmt=True),
    },
    "RateLimit-Reset as an instant": lambda: {"RateLimit-Reset": str(round(time.time()) + 5)},
    "RateLimit-Reset as a delta": lambda: {"RateLimit-Reset": "5"},
}


@pytest.mark.parametrize("headers", WAITS.values(), ids=WAITS.keys())
@pytest.mark.parametrize("status", [429, 503])
async def test_told_to_wait_nobody_calls_until_then(start, upstream, clock, headers, status):
    if status == 503 and "RateLimit-Reset" in headers():
        status = 429
    clock.step(time.time() - clock.wall())
    async with start(clock=clock, CACHE_TTL=10) as proxy:
        await proxy.get(feed("known.test"))
        await proxy.pass_time(20)
        upstream.answer = lambda _: xrpc_error(status, "RateLimitExceeded", headers=headers())
        clock.step(time.time() - clock.wall())
        refused = await proxy.get(feed("other.test"))
        assert refused.status_code == 503
        assert refused.json()["error"] == "UpstreamUnavailable"
        assert 3 <= int(refused.headers["retry-after"]) <= 7
        asked = upstream.count
        upstream.answer = upstream.feed
        for number in range(3):
            stale = await proxy.get(feed("known.test"))
            assert stale.status_code == 200
            assert "stale" in stale.headers["cache-status"]
            assert (await proxy.get(feed(f"new{number}.test"))).status_code == 503
            await proxy.pass_time(1)
        await proxy.landed()
        assert upstream.count == asked, "somebody called in spite of the wish"
        await proxy.pass_time(4)
        assert (await proxy.get(feed("new.test"))).status_code == 200


async def test_an_absurd_wish_to_wait_is_bounded(start, upstream, clock):
    upstream.answer = lambda _: xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": "99999999"})
    async with start(clock=clock) as proxy:
        await proxy.get(feed())
        upstream.answer = upstream.feed
        await proxy.pass_time(3601)
        assert (await proxy.get(feed())).status_code == 200


async def test_a_used_up_limit_is_heeded_before_it_refuses(start, upstream, clock):
    clock.step(time.time() - clock.wall())
    upstream.answer = lambda request: json_response(
        {"feed": []},
        headers={"RateLimit-Remaining": "0", "RateLimit-Reset": str(round(clock.wall()) + 30)},
    )
    async with start(clock=clock) as proxy:
        assert (await proxy.get(feed("a.test"))).status_code == 200
        assert (await proxy.get(feed("b.test"))).status_code == 503
        assert upstream.count == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_passing_trouble_is_retried(start, upstream, status):
    upstream.answer = lambda request: (
        xrpc_error(status, "Passing") if upstream.count < 3 else upstream.feed(request)
    )
    async with start() as proxy:
        answer = await proxy.get(feed())
    assert answer.status_code == 200
    assert upstream.count == 3


async def test_dropped_connections_are_retried(start, upstream):
    upstream.answer = lambda request: Response(close=True) if upstream.count < 3 else upstream.feed(request)
    async with start() as proxy:
        assert (await proxy.get(feed())).status_code == 200


SLOW = {
    "never answers": Response(hang=True),
    "drips a byte at a time": Response(body=b'{"feed":[]}', drip_s=0.05),
    "stops in the body": Response(body=b'{"feed":[]}', delay_s=30),
}


@pytest.mark.parametrize("slow", SLOW.values(), ids=SLOW.keys())
async def test_a_slow_upstream_ends_at_the_deadline(start, upstream, slow):
    upstream.answer = lambda _: slow
    async with start(UPSTREAM_TIMEOUT=0.5) as proxy:
        asked_at = time.monotonic()
        answer = await proxy.get(feed())
        took_s = time.monotonic() - asked_at
        assert answer.status_code == 504
        assert answer.json()["error"] == "UpstreamTimeout"
        assert 0.4 <= took_s < 5
        upstream.answer = upstream.feed
        assert (await proxy.get(feed("other.test"))).status_code == 200
        await upstream.stop()


async def test_many_timeouts_leave_the_pool_whole(start, upstream):
    upstream.answer = lambda _: Response(hang=True)
    async with start(UPSTREAM_TIMEOUT=0.2, UPSTREAM_CONCURRENCY=5, BREAKER_THRESHOLD=1000) as proxy:
        for round_ in range(4):
            answers = await asyncio.gather(*(proxy.get(feed(f"r{round_}n{n}.test")) for n in range(20)))
            assert {answer.status_code for answer in answers} <= {503, 504}
        upstream.answer = upstream.feed
        for number in range(20):
            assert (await proxy.get(feed(f"fine{number}.test"))).status_code == 200
        await upstream.stop()


async def test_the_rate_is_kept(start, upstream):
    async with start(UPSTREAM_RPS=50, UPSTREAM_BURST=5, UPSTREAM_TIMEOUT=4) as proxy:
        began_at = time.monotonic()
        answers = await asyncio.gather(*(proxy.get(feed(f"a{n}.test")) for n in range(200)))
    codes = [answer.status_code for answer in answers]
    assert {200, 503} <= set(codes) <= {200, 503, 504}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 503)
    assert upstream.count <= 5 + 50 * (upstream.requests[-1].at - began_at) + 1


async def test_the_concurrency_bound_is_kept(start, upstream):
    running = peak = 0

    def answer(request):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        asyncio.get_running_loop().call_later(0.02, done)
        return json_response({"feed": []}, delay_s=0.03)

    def done():
        nonlocal running
        running -= 1

    upstream.answer = answer
    async with start(UPSTREAM_CONCURRENCY=3) as proxy:
        answers = await asyncio.gather(*(proxy.get(feed(f"a{n}.test")) for n in range(30)))
    assert {each.status_code for each in answers} == {200}
    assert peak == 3


async def test_breaker_opens_probes_once_and_closes(start, upstream, clock):
    upstream.answer = lambda _: Response(close=True)
    async with start(clock=clock, BREAKER_THRESHOLD=3, BREAKER_COOLDOWN=60, RETRY_MAX=1) as proxy:
        for number in range(3):
            assert (await proxy.get(feed(f"a{number}.test"))).status_code == 502
        asked = upstream.count
        refused = await proxy.get(feed("b.test"))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) == 60
        assert (await proxy.get("/health")).json()["status"] == "warn"
        assert upstream.count == asked

        await proxy.pass_time(61)
        upstream.answer = lambda _: Response(close=True, delay_s=0.05)
        answers = await asyncio.gather(*(proxy.get(feed(f"c{n}.test")) for n in range(10)))
        assert upstream.count == asked + 1, "one probe, no more"
        assert sorted(each.status_code for each in answers) == [502] + [503] * 9

        await proxy.pass_time(61)
        upstream.answer = upstream.feed
        assert (await proxy.get(feed("d.test"))).status_code == 200
        answers = await asyncio.gather(*(proxy.get(feed(f"e{n}.test")) for n in range(10)))
        assert {each.status_code for each in answers} == {200}
        assert (await proxy.get("/health")).json()["status"] == "pass"


async def test_garbage_cursors_do_not_trouble_anyone_else(start, upstream, clock):
    """100 different garbage cursors, which the AppView answers with a 500 of its own."""

    def answer(request):
        if request.params.get("cursor", ["1__x"])[0].startswith("garbage"):
            return xrpc_error(500, "InternalServerError", "Internal Server Error")
        return upstream.feed(request)

    upstream.answer = answer
    async with start(clock=clock) as proxy:
        for number in range(100):
            failed = await proxy.get(feed(cursor=f"garbage{number}"))
            assert failed.status_code == 502
            assert (await proxy.get(feed(f"a{number}.test"))).status_code == 200
        assert upstream.count == 200
        assert (await proxy.get("/health")).json()["status"] == "pass"
        for _ in range(50):
            await proxy.get(feed(cursor="garbage1"))
        assert upstream.count == 200, "a broken query costs one call a period"


async def test_under_a_flood_of_garbage_cursors_real_questions_go_first(start, upstream):
    def answer(request):
        if "cursor" in request.params:
            return xrpc_error(500, "InternalServerError")
        return upstream.feed(request)

    upstream.answer = answer
    async with start(UPSTREAM_RPS=20, UPSTREAM_BURST=1) as proxy:
        flood = [asyncio.create_task(proxy.get(feed(cursor=f"garbage{n}"))) for n in range(100)]
        await until(lambda: upstream.count)
        answers = await asyncio.gather(*(proxy.get(feed(f"a{number}.test")) for number in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        real = [at for at, request in enumerate(upstream.requests) if "cursor" not in request.params]
        assert real[-1] - real[0] <= len(real), "the flood went first"
        assert not all(task.done() for task in flood), "the flood was over"
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)
        await upstream.stop()


async def test_a_queue_of_our_own_is_not_held_against_the_upstream(start, upstream):
    """More misses than the budget carries, for longer than a flight may wait; the upstream is well."""
    upstream.delay_s = 0.15
    settings = {"UPSTREAM_RPS": 20, "UPSTREAM_BURST": 1, "UPSTREAM_TIMEOUT": 4, "BREAKER_THRESHOLD": 3}
    async with start(**settings) as proxy:
        answers = await asyncio.gather(*(proxy.get(feed(f"a{n}.test")) for n in range(100)))
        assert {answer.status_code for answer in answers} == {200, 503}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
        assert (await proxy.get("/health")).json()["checks"]["upstream"][0]["status"] == "pass"


async def test_an_opening_breaker_ends_the_wait_of_everyone(start, upstream):
    upstream.answer = lambda _: Response(close=True)
    settings = {"UPSTREAM_RPS": 5, "UPSTREAM_BURST": 4, "RETRY_MAX": 1, "BREAKER_THRESHOLD": 3}
    async with start(**settings) as proxy:
        answers = await asyncio.gather(*(proxy.get(feed(f"a{n}.test")) for n in range(20)))
        assert upstream.count <= 4, "calls went on after the breaker had opened"
        refused = [answer for answer in answers if answer.status_code == 503]
        assert len(refused) >= 16
        assert all("left alone" in answer.json()["message"] for answer in refused)


async def test_refreshes_go_on_under_a_flood_of_misses(start, upstream, clock):
    upstream.delay_s = 0.05
    async with start(clock=clock, CACHE_TTL=10) as proxy:
        await proxy.get(feed("known.test"))
        await proxy.pass_time(20)
        flood = [asyncio.create_task(proxy.get(feed(f"a{n}.test"))) for n in range(1000)]
        await until(lambda: upstream.count > 20)
        await proxy.get(feed("known.test"))
        refreshed_at = upstream.count
        await until(lambda: [r for r in upstream.requests[1:] if "known" in r.target])
        assert upstream.count - refreshed_at < 500, "the refresh came last"
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)


async def test_a_429_without_a_time_gives_the_client_one(start, upstream):
    upstream.answer = lambda _: xrpc_error(429, "RateLimitExceeded")
    async with start() as proxy:
        answer = await proxy.get(feed())
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) == 5


async def test_giving_up_answers_everyone_with_what_there_is(start, upstream, clock):
    """On SIGTERM with an upstream that hangs: stale where there is a copy, else an error."""
    async with start(clock=clock, CACHE_TTL=10, STALE_WHILE_REVALIDATE=0) as proxy:
        await proxy.get(feed("known.test"))
        await proxy.pass_time(20)
        upstream.answer = lambda _: Response(hang=True)
        waiting = [asyncio.create_task(proxy.get(feed(name))) for name in ("known.test", "new.test")]
        await until(lambda: upstream.count == 3)
        proxy.web.give_up()
        known, new = await asyncio.gather(*waiting)
        await upstream.stop()
    assert known.status_code == 200
    assert "stale-if-error" in known.headers["cache-status"]
    assert new.status_code == 504

"""`feedproxy doctor` finds each planted fault, names it and says what to do; what is well it leaves alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from email.utils import formatdate

import pytest

from harness.newsroom import ONE_ACCOUNT, PASSWORD, token_of
from harness.pds import Directory, PdsServer
from harness.upstream import Response, json_response, xrpc_error
from harness.valkey import valkey_server
from harness.waiting import until
from integration.processes import ServeProcess, environment
from proxy.clock import SystemClock
from proxy.examining import examine
from proxy.settings import load_settings

DOCTOR = (sys.executable, "-P", "-m", "proxy.cli", "doctor")
LIMITS = {"RateLimit-Limit": "5000", "RateLimit-Policy": "5000;w=3600"}


@pytest.fixture(scope="module")
def durable(tmp_path_factory):
    """A Valkey that keeps posts as it should."""
    directory = tmp_path_factory.mktemp("durable", numbered=True)
    with valkey_server("--appendonly", "yes", directory=directory) as url:
        yield url


class Place:
    """What feedproxy needs, and a look at it: by a part's name, what is said of those that are not well."""

    def __init__(self, upstream, directory, pds, config, url) -> None:
        self.upstream = upstream
        self.directory = directory
        self.pds = pds
        self.alice = pds.accounts["did:plc:alice"]
        self.steps: list[tuple[int, int]] = []
        self.passed: dict[str, str] = {}
        self.settings = {
            "UPSTREAM": upstream.url,
            "PLC_URL": directory.url,
            "CONFIG": config,
            "REDIS_URL": url,
            "NAMESPACE": f"test-{os.urandom(4).hex()}",
        }

    async def wrong(self, **settings):
        given = {f"FEEDPROXY_{name}": str(value) for name, value in (self.settings | settings).items()}
        self.steps.clear()
        loaded, clock = load_settings(given), SystemClock()
        findings = await examine(loaded, clock, os.environ, lambda *step: self.steps.append(step))
        self.passed = {finding.part: finding.output for finding in findings if finding.status == "pass"}
        return {finding.part: finding.output for finding in findings if finding.status != "pass"}


def profile(ahead_s=0):
    """What an AppView answers whose clock is so far ahead."""
    return json_response({}, headers={"Date": formatdate(time.time() + ahead_s, usegmt=True)})


def limited(remaining, resets_in_s=900):
    """Headers of a PDS that has so many points left."""
    resets_at = str(int(time.time()) + resets_in_s)
    return {**LIMITS, "RateLimit-Remaining": str(remaining), "RateLimit-Reset": resets_at}


@pytest.fixture
async def place(upstream, durable, tmp_path, monkeypatch):
    monkeypatch.setenv("PASSWORD_main", PASSWORD)
    monkeypatch.setenv("TOKEN_blog", token_of("blog"))
    config = tmp_path / "feedproxy.toml"
    config.write_text(ONE_ACCOUNT)
    upstream.answer = lambda _: profile()
    async with Directory() as directory, PdsServer(directory) as pds:
        pds.host("did:plc:alice", "alice.test", PASSWORD)
        yield Place(upstream, directory, pds, config, durable)


# Nobody works in these tests, which is a finding of its own.
IDLE = {"workers"}


async def run(*command, **settings):
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment(settings.pop("DATA_DIR", "/nowhere"), **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def at_work(serve):
    """Whether the worker is, too."""
    _, body = await asyncio.to_thread(serve.get, "/health")
    return json.loads(body)["status"] == "pass"


async def test_where_all_is_well_it_says_so_and_changes_nothing(place, tmp_path):
    settings = {name: place.settings[name] for name in ("UPSTREAM", "PLC_URL", "CONFIG")}
    place.pds.headers = limited(4990)
    with ServeProcess(tmp_path / "data", **settings) as serve:
        await asyncio.to_thread(serve.wait_ready)
        await until(lambda: at_work(serve))
        code, out, err = await run(*DOCTOR, DATA_DIR=tmp_path / "data", **settings)
        assert (code, err) == (0, ""), out
        assert out.rstrip().endswith("all is well")
        assert {line.split()[0] for line in out.splitlines()[:-1]} == {"ok"}
        code, out, err = await run(*DOCTOR, "--json", DATA_DIR=tmp_path / "data", **settings)
        assert (code, err) == (0, "")
    told = json.loads(out)
    parts = {finding["part"]: finding["output"] for finding in told["findings"]}
    assert told["status"] == "pass"
    host = place.pds.url.removeprefix("http://")
    assert parts.keys() >= {
        *("settings", "clock_redis", "clock_upstream", "upstream", f"pds {host}", "account main"),
        *("queue", "workers", "dead_letters", "accounts", "durability", "eviction"),
    }
    assert re.fullmatch(r"4990 of 5000 points are left for [89][0-9]{2} s", parts["account main"])
    assert (place.alice.records, place.pds.commits) == ({}, [])
    assert len(place.pds.calls("createSession")) == 1, "the session is the fleet's"


async def test_a_redis_that_may_lose_posts_is_found(place):
    with valkey_server("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru") as url:
        wrong = await place.wrong(REDIS_URL=url)
    assert wrong.keys() - IDLE == {"durability", "eviction"}
    assert "appendonly yes" in wrong["durability"]
    assert "volatile-lru or noeviction" in wrong["eviction"]
    assert (await place.wrong()).keys() == IDLE
    assert place.steps[-1] == (5, 5), "queue, upstream, directory, server, login"


async def test_a_redis_that_is_away_is_found_and_the_servers_are_asked_all_the_same(place, tmp_path):
    wrong = await place.wrong(REDIS_URL=f"unix://{tmp_path}/nowhere")
    assert "See that Redis runs" in wrong["queue"]
    assert "was not tried" in wrong["account main"]
    assert "password" not in wrong["account main"], "which has nothing to do with it"
    host = place.pds.url.removeprefix("http://")
    assert {"upstream", f"pds {host}"} <= place.passed.keys()
    place.settings.pop("REDIS_URL")
    wrong = await place.wrong(DATA_DIR=tmp_path)
    assert wrong.keys() == {"queue"}
    assert "while `feedproxy serve` runs" in wrong["queue"]
    assert "Logins were not tried" in wrong["queue"]


async def test_a_cache_that_is_away_is_found(place, tmp_path):
    wrong = await place.wrong(CACHE_REDIS_URL=f"unix://{tmp_path}/nowhere")
    assert wrong.keys() - IDLE == {"cache_store"}
    assert "FEEDPROXY_CACHE_REDIS_URL" in wrong["cache_store"]
    assert (await place.wrong(CACHE_REDIS_URL=place.settings["REDIS_URL"])).keys() == IDLE
    assert "cache_store" in place.passed


async def test_a_clock_of_ours_that_is_off_is_found(place):
    shifted = ("faketime", "-f", "+300s", *DOCTOR, "--json")
    code, out, err = await run(*shifted, **place.settings)
    assert (code, err) == (1, "")
    wrong = {each["part"]: each["output"] for each in json.loads(out)["findings"] if each["status"] != "pass"}
    assert wrong.keys() - IDLE == {"clock_redis", "clock_upstream"}
    for part, whose in (("clock_redis", "Redis"), ("clock_upstream", place.upstream.url)):
        assert re.match(rf"The clock of {whose} is (29[0-9]|30[0-9]) s behind this host's", wrong[part])
        assert "NTP" in wrong[part]


async def test_a_clock_of_the_upstream_that_is_off_is_found(place):
    place.upstream.answer = lambda _: profile(ahead_s=600)
    wrong = await place.wrong()
    assert wrong.keys() - IDLE == {"clock_upstream"}
    assert re.search(r"(59[0-9]|60[0-9]) s ahead of", wrong["clock_upstream"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Response(status=503), "answered 503, and not as an AppView does. See FEEDPROXY_UPSTREAM"),
        (Response(body=b"<html>"), "answered 200, and not as an AppView does"),
        (xrpc_error(401, "AuthMissing"), "answered 401. See FEEDPROXY_UPSTREAM"),
        (xrpc_error(429, "RateLimitExceeded", headers={"retry-after": "30"}), "to wait for 30 s"),
        (Response(close=True), "did not answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_upstream_that_is_none_is_found(place, answer, said):
    place.upstream.answer = lambda _: answer
    wrong = await place.wrong()
    assert wrong.keys() - IDLE == {"upstream"}
    assert said in wrong["upstream"]


async def test_an_upstream_that_knows_nobody_is_an_upstream(place):
    place.upstream.answer = lambda _: xrpc_error(400, "InvalidRequest", "Profile not found")
    assert (await place.wrong(ACTORS="at://did:plc:a/app.bsky.feed.generator/f,alice.test")).keys() == IDLE
    assert place.upstream.requests[-1].params == {"actor": ["alice.test"]}


async def test_a_server_of_an_account_that_is_away_is_found(place):
    async with PdsServer(place.directory) as other:
        place.directory.homes["did:plc:alice"] = away = other.url
    wrong = await place.wrong()
    assert wrong.keys() - IDLE == {f"pds {away.removeprefix('http://')}"}
    assert "whether this host may connect there" in wrong.popitem()[1]


async def test_a_server_that_is_no_pds_is_found_and_is_shown_no_password(place):
    place.pds.fail("describeServer", Response(status=404, body=b"<html>"))
    wrong = await place.wrong()
    assert "and not as a PDS does" in wrong[f"pds {place.pds.url.removeprefix('http://')}"]
    assert place.pds.calls("createSession") == []


async def test_an_account_that_does_not_exist_is_found(place):
    del place.directory.homes["did:plc:alice"]
    wrong = await place.wrong()
    assert wrong.keys() - IDLE == {"account main"}
    assert "there is no account did:plc:alice" in wrong["account main"]


async def test_a_password_that_is_wrong_or_missing_is_found(place, monkeypatch):
    place.alice.password = "another"
    wrong = await place.wrong()
    assert wrong.keys() - IDLE == {"account main"}
    assert "app password" in wrong["account main"]
    assert PASSWORD not in repr(wrong)
    monkeypatch.delenv("PASSWORD_main")
    wrong = await place.wrong()
    assert wrong.keys() - IDLE == {"account main", "secrets"}
    assert "PASSWORD_main is not set" in wrong["secrets"]
    assert len(place.pds.calls("createSession")) == 1


async def test_an_account_that_has_written_nearly_all_it_may_is_found(place):
    place.pds.headers = limited(499)
    wrong = await place.wrong()
    assert wrong.keys() - IDLE == {"account main"}
    assert wrong["account main"].startswith("499 of 5000 points are left")
    place.pds.headers = {"RateLimit-Remaining": "many"}
    assert (await place.wrong()).keys() == IDLE
    assert place.passed["account main"] == "its server tells no limits"


async def test_what_servers_say_is_shown_and_not_obeyed(place):
    hostile = "[red]\x1b]0;owned\x07\u202e"
    place.pds.fail("createSession", xrpc_error(400, hostile, hostile))
    code, out, err = await run(*DOCTOR, **place.settings)
    assert (code, err) == (1, "")
    assert "[red]" in out
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert "2 of " in out

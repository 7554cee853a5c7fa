"""`feedproxy top` in a terminal (tmux) and without one, before a real host under a load that is known."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from harness.newsroom import ONE_ACCOUNT, PASSWORD, published_at, token_of
from harness.pds import HANG_AFTER, Directory, PdsServer
from harness.proxy import feed
from harness.upstream import Response, Upstream, json_response
from harness.waiting import until
from integration.processes import ServeProcess, environment

ADMIN = "admin-token-of-this-test-0123456789"
HOSTILE = "[red]\x1b]0;owned\x07\x1b[2J<script>\u202e\u009b2J"
FEEDPROXY = (sys.executable, "-P", "-m", "proxy.cli")


class Screen:
    """A terminal in a tmux of its own, and what it shows."""

    def __init__(self, directory: Path) -> None:
        self._tmux = ("tmux", "-u", "-S", str(directory / "tmux"), "-f", "/dev/null")
        self._code = directory / "code"

    def start(self, *command: str, columns: int = 120, lines: int = 40, **settings: object) -> None:
        script = f'trap : INT; "$@"; echo $? > {self._code}; exec cat'
        subprocess.run(
            [
                *self._tmux,
                "new-session",
                "-d",
                "-x",
                str(columns),
                "-y",
                str(lines),
                "sh",
                "-c",
                script,
                "-",
                *command,
            ],
            env=environment(self._code.parent / "none", **settings),
            check=True,
        )

    async def until_shown(self, pattern: str) -> re.Match[str]:
        def found():
            return re.search(pattern, self.text())

        try:
            return await until(lambda: asyncio.to_thread(found), every_s=0.05)
        except TimeoutError:
            raise AssertionError(f"{pattern} is not in:\n{self.text()}") from None

    def text(self) -> str:
        return self._told("capture-pane", "-p")

    def title(self) -> str:
        return self._told("display-message", "-p", "#{pane_title}")

    async def interrupt(self) -> int:
        """Press Ctrl-C; the exit code."""
        self._told("send-keys", "C-c")
        await until(self._code.exists, every_s=0.05)
        return int(await until(self._code.read_text))

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)

    def _told(self, *question: str) -> str:
        return subprocess.run([*self._tmux, *question], capture_output=True, check=True).stdout.decode()


@pytest.fixture
def screen(tmp_path):
    own = Screen(tmp_path)
    yield own
    own.close()


@pytest.fixture
def run(tmp_path):
    """Run a command: exit code, stdout, stderr."""

    async def run(*arguments, **settings):
        process = await asyncio.create_subprocess_exec(
            *FEEDPROXY,
            *arguments,
            env=environment(tmp_path / "none", **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    return run


@pytest.fixture
async def host(upstream, tmp_path, monkeypatch):
    """A host with two web processes and a worker, whose one post hangs at its PDS."""
    monkeypatch.setenv("PASSWORD_main", PASSWORD)
    monkeypatch.setenv("TOKEN_blog", token_of("blog"))
    config = tmp_path / "feedproxy.toml"
    config.write_text(ONE_ACCOUNT)
    async with Directory() as directory, PdsServer(directory) as pds:
        pds.host("did:plc:alice", "alice.test", PASSWORD)
        pds.fail("putRecord", HANG_AFTER)
        settings = {"UPSTREAM": upstream.url, "PLC_URL": directory.url, "WORKERS": 2, "UPSTREAM_RPS": 4000}
        with ServeProcess(tmp_path / "data", CONFIG=config, **settings) as serve:
            await asyncio.to_thread(serve.wait_ready)
            yield serve


class Load:
    """Reads of eight feeds, over and over, until told to stop."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self.sent = 0

    @contextlib.asynccontextmanager
    async def running(self):
        stop = asyncio.Event()

        async def read():
            async with httpx.AsyncClient(base_url=self._base_url, trust_env=False) as client:
                while not stop.is_set():
                    self.sent += 1
                    assert (await client.get(feed(f"user{self.sent % 8}.test"))).status_code == 200

        reading = asyncio.create_task(read())
        try:
            yield
        finally:
            stop.set()
            await reading


async def post(base_url):
    document = {"id": "1", "url": "https://blog.example/1", "title": "A", "published_at": published_at()}
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as cms:
        headers = {"authorization": f"Bearer {token_of('blog')}"}
        assert (await cms.post("/syndicate", json=document, headers=headers)).status_code == 202


async def test_a_terminal_shows_the_numbers_of_a_running_load(host, screen):
    load = Load(host.base_url)
    screen.start(*FEEDPROXY, "top", host.base_url)
    await screen.until_shown(r"2 web · 1 worker")
    assert re.search(r"hit ratio +- +nobody reads", screen.text())
    async with load.running():
        rate = await screen.until_shown(r"reads +([0-9]+\.[0-9])/s +hit [0-9]")
        assert float(rate[1]) > 0
        await screen.until_shown(r"hit ratio +━+.* ([1-9][0-9]|100)\.[0-9]% from copies")
        await post(host.base_url)
        await screen.until_shown(r"workers +[━╸╺]+.* 1 of 8 at work")
        await screen.until_shown(r"1 workers alive +0 ready · 1 active")
        await screen.until_shown(r"upstream +.*of 4000/s")
        assert re.search(r"breaker +closed", screen.text())
        assert re.search(r"main +0 +open", screen.text())
    await screen.until_shown(rf"[^0-9]{load.sent} in all")
    host.terminate()
    await screen.until_shown(r"does not answer \(ConnectError\)")
    assert await screen.interrupt() == 0
    assert "feedproxy top" not in screen.text(), "the screen is as it was before"


async def test_without_a_terminal_there_is_one_snapshot(host, run):
    load = Load(host.base_url)
    async with load.running():
        await until(lambda: load.sent > 50)
        before = load.sent
        code, out, err = await run("top", host.base_url, "--json")
        picture = json.loads(out)
        after = load.sent
    assert (code, err) == (0, "")
    reads = picture["reads"]
    assert before - 1 <= reads["total"] <= after
    assert 0 < reads["per_s"] * picture["window_s"] <= after - before + 1
    assert 0.9 < reads["hit_ratio"] <= 1
    assert picture["hosts"][0]["processes"] == {"web": 2, "worker": 1}
    assert picture["upstream"]["limit_per_s"] == 4000
    assert picture["queue"]["workers"] == 1
    assert picture["accounts"] == [{"account": "main", "waiting": 0, "closed": None}]
    port = host.base_url.rpartition(":")[2]
    code, out, err = await run("top", PORT=port)
    assert (code, err) == (0, "")
    assert re.search(rf"{load.sent} in all", out)
    assert "\x1b" not in out


def hostile_host(call):
    """A host whose every text would do harm."""
    if call.path == "/health":
        check = {"status": "warn", "output": HOSTILE}
        return json_response({"status": "warn", "checks": {"queue": [check], HOSTILE: [check]}})
    account = f'account="{HOSTILE}"'
    lines = [
        'feedproxy_build_info{version="1"} 1',
        f"feedproxy_account_waiting_jobs{{{account}}} 3",
        f'feedproxy_account_closed{{{account},reason="{HOSTILE}"}} 1',
        f'feedproxy_upstream_breaker{{state="{HOSTILE}"}} 1',
        f'feedproxy_processes{{role="{HOSTILE}"}} 1',
        f'feedproxy_requests_total{{outcome="{HOSTILE}"}} 1',
    ]
    return Response(body=("\n".join(lines) + "\n").encode())


async def test_what_hosts_say_is_shown_and_not_obeyed(upstream, screen, run):
    upstream.answer = hostile_host
    screen.start(*FEEDPROXY, "top", upstream.url)
    await screen.until_shown(r"queue: \[red\]")
    await screen.until_shown(r"Account +Waiting +State")
    assert "owned" not in screen.title()
    assert "<script>" in screen.text()
    assert await screen.interrupt() == 0
    code, out, err = await run("top", upstream.url)
    assert (code, err) == (0, "")
    assert out.count("[red]") >= 5
    assert not set(out) & {"\x1b", "\x07", "\u202e", "\u009b"}
    code, out, _ = await run("top", upstream.url, "--json")
    assert out.isascii()
    assert json.loads(out)["accounts"][0]["account"] == HOSTILE


def warning_host(call):
    """A host with a queue and an account, and much to say of what is wrong."""
    if call.path == "/health":
        check = {"status": "warn", "output": "Redis keeps posts in memory alone. " * 20}
        return json_response({"status": "warn", "checks": {"durability": [check], "eviction": [check]}})
    lines = [
        'feedproxy_build_info{version="1"} 1',
        'feedproxy_account_waiting_jobs{account="main"} 3',
        'feedproxy_jobs{state="ready"} 3',
        "feedproxy_workers 1",
        'feedproxy_processes{role="web"} 2',
        "feedproxy_pool_size 8",
    ]
    return Response(body=("\n".join(lines) + "\n").encode())


@pytest.mark.parametrize(("columns", "lines"), [(40, 11), (80, 24)])
async def test_on_a_small_terminal_findings_leave_room_for_the_rest(upstream, screen, columns, lines):
    upstream.answer = warning_host
    screen.start(*FEEDPROXY, "top", upstream.url, columns=columns, lines=lines)
    await screen.until_shown(r"durability: Redis keeps")
    shown = screen.text()
    assert re.search(r"eviction: Redis keeps", shown)
    assert re.search(r"workers +.*0 of 8", shown)
    assert re.search(r"queue +1 workers alive +.*3 ready", shown)
    assert re.search(r"main:? +3", shown)
    assert await screen.interrupt() == 0


async def test_several_hosts_are_one_picture_and_one_that_is_away_is_named(upstream, run):
    upstream.answer = hostile_host
    async with Upstream() as other:
        other.answer = hostile_host
        code, out, _ = await run("top", upstream.url, other.url, "--json")
        assert code == 0
        assert json.loads(out)["reads"]["total"] == 2
        [_, finding] = json.loads(out)["findings"]
        assert finding["hosts"] == [upstream.url, other.url]
        away = other.url
    code, out, _ = await run("top", upstream.url, away)
    assert code == 1
    assert re.search(rf"{away} +does not answer", out)
    code, out, err = await run("top", away)
    assert (code, out, err) == (1, "", f"feedproxy: {away} does not answer (ConnectError)\n")


async def test_the_admin_token_is_shown_to_this_host_alone(upstream, run):
    upstream.answer = lambda _: Response(status=404)
    port = upstream.url.rpartition(":")[2]
    code, _, err = await run("top", ADMIN_TOKEN=ADMIN, PORT=port)
    assert code == 1
    assert "FEEDPROXY_OPS_LISTEN" in err
    assert {call.headers.get("authorization") for call in upstream.requests} == {f"Bearer {ADMIN}"}
    upstream.requests.clear()
    await run("top", upstream.url, ADMIN_TOKEN=ADMIN)
    assert {call.headers.get("authorization") for call in upstream.requests} == {None}
    upstream.answer = lambda _: Response(body=b"<html>")
    code, _, err = await run("top", OPS_LISTEN=f"0.0.0.0:{port}")
    assert (code, err) == (1, f"feedproxy: {upstream.url} answers, but not as a feedproxy does\n")


async def test_wrong_use_is_said_to_be(run):
    assert (await run("top"))[0] == 2, "PORT is 0"
    code, _, err = await run("top", "ftp://host")
    assert code == 2
    assert err.startswith("feedproxy: 'ftp://host': must be")

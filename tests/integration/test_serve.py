"""The whole of `serve` as operators run it: real web processes, a real Valkey, an upstream of our own."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
import redis

from harness.proxy import feed
from harness.upstream import Response
from harness.waiting import DEADLINE_S, until, until_true
from integration.processes import ServeProcess, is_running
from proxy.clock import SystemClock
from proxy.store import aof
from proxy.store.datadir import socket_path

INCR = "appendonly.aof.1.incr.aof"
COMMAND = (sys.executable, "-P", "-m", "proxy.cli", "serve")


def generous(upstream) -> dict[str, object]:
    """Settings with which no request waits for a budget."""
    return {
        "UPSTREAM": upstream.url,
        "UPSTREAM_RPS": 10_000,
        "UPSTREAM_BURST": 1000,
        "UPSTREAM_CONCURRENCY": 100,
        "CLIENT_EXEMPT": "127.0.0.1/32",
    }


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / 'it\'s "the" data'  # quoted wrongly anywhere, nothing here would work


@pytest.fixture
def serving(upstream, data_dir):
    """Start `serve` before `upstream`: `with serving(WORKERS=2) as serve`."""

    def starting(**settings):
        return ServeProcess(data_dir, **generous(upstream), **settings)

    return starting


class Client:
    """A browser of feeds that asks over connections it keeps."""

    def __init__(self, serve: ServeProcess) -> None:
        self._serve = serve
        self._http = httpx.AsyncClient(base_url=serve.base_url, timeout=DEADLINE_S, trust_env=False)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_exc):
        await self._http.aclose()

    async def get(self, target: str) -> httpx.Response:
        return await self._http.get(target)

    async def outcomes(self, targets) -> list[str]:
        """What Cache-Status says of each: hit or fwd."""
        answers = [await self.get(target) for target in targets]
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        return [answer.headers["cache-status"].split("; ")[1].partition("=")[0] for answer in answers]

    async def warning(self, part: str) -> str | None:
        """What /health has to say of a part that is not well."""
        checks = (await self.get("/health")).json()["checks"]
        return next((found["output"] for found in checks.get(part, ()) if found["status"] != "pass"), None)


class Caller:
    """A client that asks for one feed after the other for as long as it is let; one `keeps` its connection.

    `before` and `after` are the statuses of what it sent before and after `told`; None: no answer.
    """

    def __init__(self, serve: ServeProcess, name: str, told: asyncio.Event, *, keeps: bool) -> None:
        self._port = int(serve.base_url.rpartition(":")[2])
        self._told = told
        self._header = b"" if keeps else b"Connection: close\r\n"
        self._targets = (feed(f"{name}-{number}.test") for number in itertools.count())
        self.before: list[int | None] = []
        self.after: list[int | None] = []

    async def run(self) -> None:
        while await self._connection():
            pass

    async def _connection(self) -> bool:
        """One connection, to its end; whether there may be another."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionError:
            if self._told.is_set():
                return False
            raise
        try:
            while True:
                outcomes = self.after if self._told.is_set() else self.before
                writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n" % next(self._targets).encode())
                writer.write(self._header + b"\r\n")
                status, stays = await self._answer(reader)
                outcomes.append(status)
                if not stays:
                    return status is not None
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int | None, bool]:
        """Status of a whole answer, and whether the connection stays; half an answer fails the test."""
        try:
            begin = await reader.read(1)
        except ConnectionError:
            begin = b""
        if not begin:
            return None, False
        head = begin + await reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").lower().splitlines()
        headers = dict(line.split(": ", 1) for line in lines if line)
        await reader.readexactly(int(headers["content-length"]))
        return int(status_line.split()[1]), headers.get("connection") != "close"


def feeds(count: int) -> list[str]:
    return [feed(f"a{number}.test") for number in range(count)]


def stored(data_dir: Path) -> int | None:
    """How many feeds lie in the embedded store; None while it does not say."""
    with redis.Redis(unix_socket_path=str(socket_path(data_dir))) as client:
        try:
            return sum(1 for _ in client.scan_iter("feedproxy:feed:*}", count=1000))
        except redis.RedisError:
            return None


def copies(data_dir: Path) -> set[Path]:
    return set(data_dir.glob("*.damaged-*"))


def corrupt(data_dir: Path, actor: str) -> bytes:
    """Have a length in the entry of that actor's feed point past the end; the whole file as it is now."""
    incr = data_dir / aof.DIRECTORY / INCR
    content = incr.read_bytes()
    length = re.compile(rb"\$\d{3}\r\n").search(content, content.rindex(actor.encode()))
    assert length is not None
    damaged = content[: length.start()] + b"$99999\r\n" + content[length.end() :]
    incr.write_bytes(damaged)
    return damaged


def crash(serve: ServeProcess) -> None:
    """End `serve` and its Valkey as a power cut does."""
    valkey = serve.valkey_pid()
    serve.kill()
    os.kill(valkey, signal.SIGKILL)
    until_true(lambda: not is_running(valkey), "Valkey is gone")


def kill_web(serve: ServeProcess) -> None:
    """Replace the one web process by a new one that remembers nothing."""
    (web,) = serve.web_pids()
    os.kill(web, signal.SIGKILL)
    serve.wait_event("web_ready", count=2)


def wait_stored(data_dir: Path, count: int) -> None:
    """Writes to the store follow the answer."""
    until_true(lambda: stored(data_dir) == count, f"{count} feeds are stored")


def wait_up(serve: ServeProcess) -> None:
    """Return when web process and store are both there."""
    serve.wait_ready()
    until_true(lambda: stored(serve.data_dir) is not None, "the store answers")


async def fill(serve: ServeProcess, targets: list[str]) -> None:
    """Have the feeds cached and stored, one after the other."""
    wait_up(serve)
    async with Client(serve) as client:
        for number, target in enumerate(targets, start=1):
            assert await client.outcomes([target]) == ["fwd"]
            wait_stored(serve.data_dir, number)


async def test_feeds_outlive_a_killed_serve(serving, upstream):
    with serving() as first:
        await fill(first, feeds(3))
        first.kill()
        with serving() as second:
            wait_up(second)
            async with Client(second) as client:
                assert await client.outcomes(feeds(3)) == ["hit"] * 3
    assert upstream.count == 3


async def test_a_killed_valkey_costs_no_reader_anything(serving, upstream, data_dir):
    with serving() as serve:
        await fill(serve, feeds(3))
        numbers = itertools.count()
        async with Client(serve) as client:
            back = asyncio.create_task(asyncio.to_thread(serve.wait_event, "valkey_up", count=2))
            os.kill(serve.valkey_pid(), signal.SIGKILL)
            while not back.done():
                number = next(numbers)
                await client.outcomes([feed(f"a{number % 3}.test"), feed(f"during{number}.test")])
            await back

            async def stored_again() -> str | None:
                had = stored(data_dir)
                target = feed(f"after{next(numbers)}.test")
                await client.outcomes([target])
                return target if had is not None and (stored(data_dir) or 0) > had else None

            later = await until(stored_again)
        kill_web(serve)
        asked = upstream.count
        async with Client(serve) as client:
            assert await client.outcomes([*feeds(3), later]) == ["hit"] * 4
        assert upstream.count == asked


async def test_a_torn_file_costs_its_last_feed_alone(serving, data_dir):
    with serving() as serve:
        await fill(serve, feeds(3))
        crash(serve)
    incr = data_dir / aof.DIRECTORY / INCR
    os.truncate(incr, incr.read_bytes().rindex(b"arrived_at"))  # in the midst of the last one
    with serving() as serve:
        wait_up(serve)
        async with Client(serve) as client:
            assert await client.outcomes(feeds(3)) == ["hit", "hit", "fwd"]
            assert await client.warning("store_data") is None
        assert serve.wait_event("valkey_tail_cut")["lost_bytes"] > 0


async def test_a_corrupt_file_is_served_around_and_named(serving, data_dir):
    with serving() as serve:
        await fill(serve, feeds(3))
        crash(serve)
    damaged = corrupt(data_dir, "a1.test")
    with serving() as serve:
        wait_up(serve)
        async with Client(serve) as client:
            assert await client.outcomes(feeds(3)) == ["hit", "fwd", "fwd"]
            (copy,) = copies(data_dir)
            assert (copy / INCR).read_bytes() == damaged
            assert f"the damaged files are in {copy})" in await client.warning("store_data")
            assert (await client.get("/health")).json()["status"] == "warn"

            # What happens under a web process that runs, it hears at once.
            wait_stored(data_dir, 3)
            os.kill(serve.valkey_pid(), signal.SIGSTOP)
            corrupt(data_dir, "a2.test")
            os.kill(serve.valkey_pid(), signal.SIGKILL)
            serve.wait_event("valkey_data_salvaged", count=2)
            (second,) = copies(data_dir) - {copy}

            async def told() -> bool:
                return str(second) in await client.warning("store_data")

            await until(told)
            assert await client.outcomes(feeds(3)) == ["hit"] * 3
        assert serve.get("/readyz")[0] == 200


async def test_a_stop_under_load_answers_whatever_was_sent(serving, upstream):
    upstream.delay_s = 0.2
    told = asyncio.Event()
    with serving() as serve:
        wait_up(serve)
        callers = [Caller(serve, f"c{number}", told, keeps=number % 2 == 0) for number in range(50)]
        async with asyncio.TaskGroup() as tasks:
            for caller in callers:
                tasks.create_task(caller.run())
            await until(lambda: all(caller.before for caller in callers))
            told.set()
            asked_at = SystemClock().steady()
            exit_code = await asyncio.to_thread(serve.terminate)
            assert SystemClock().steady() - asked_at < 10
        assert exit_code == 0
        for caller in callers:  # each had a request under way
            assert set(caller.before) == {200}
            # What it sent later was answered, or met a connection that had been closed.
            assert set(caller.after) <= {200, None}
        assert not serve.events("drain_cut_short")
        assert not serve.events("process_died")
        assert not any(map(is_running, serve.started_pids()))


async def test_a_stop_refuses_connections_while_it_waits_for_an_answer(serving, upstream):
    upstream.answer = lambda _request: Response(hang=True)
    with serving(WORKERS=2, RETRY_BASE_MS=1) as serve:
        wait_up(serve)
        address = ("127.0.0.1", int(serve.base_url.rpartition(":")[2]))

        def refused() -> bool:
            try:
                socket.create_connection(address, timeout=DEADLINE_S).close()
            except ConnectionRefusedError:
                return True
            return False

        async with Client(serve) as client:
            under_way = asyncio.create_task(client.get(feed()))
            await until(lambda: upstream.count)
            serve.send(signal.SIGTERM)
            await until(refused)
            assert serve.exit_code() is None
            assert not under_way.done()
            upstream.answer = upstream.feed
            for connection in upstream._connections:
                connection.transport.abort()  # it is tried again
            assert (await under_way).status_code == 200
        assert await asyncio.to_thread(serve.wait) == 0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Three web processes and a Valkey, for tests that leave them as they were and need no upstream."""
    home = tmp_path_factory.mktemp("fleet")
    token = home / "token"
    token.write_text("t" * 32)
    command = (*COMMAND, "--workers", "3")
    with ServeProcess(home / "data", command=command, ADMIN_TOKEN_FILE=token) as serve:
        serve.wait_ready()
        serve.wait_event("valkey_up")
        serve.wait_event("worker_ready")
        yield serve


def test_each_web_process_serves(fleet):
    pids = fleet.web_pids()
    assert len(pids) == 3
    for pid in pids:
        others = [other for other in pids if other != pid]
        try:
            for other in others:
                os.kill(other, signal.SIGSTOP)
            assert fleet.get("/readyz")[0] == 200  # nobody else is there to say so
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)


def test_a_host_is_ready_when_all_its_web_processes_are(fleet):
    token = fleet.data_dir.parent / "token"
    started, ready = len(fleet.events("web_started")), len(fleet.events("web_ready"))
    gate = token.with_name("gate")
    os.mkfifo(gate)
    gate.replace(token)  # a process that starts waits here for its settings
    os.kill(fleet.web_pids()[0], signal.SIGKILL)
    fleet.wait_event("web_started", count=started + 1)
    until_true(lambda: fleet.get("/readyz")[0] == 503, "the others know")
    assert fleet.get("/livez")[0] == 200
    assert len(fleet.events("web_ready")) == ready
    with token.open("w") as opened:
        opened.write("t" * 32)
    fleet.wait_ready()
    assert len(fleet.events("web_ready")) == ready + 1
    assert len(fleet.web_pids()) == 3


def test_a_hangup_leaves_the_web_processes_alone(fleet):
    before, died = fleet.web_pids(), len(fleet.events("process_died"))
    for count in (1, 2):  # the second is passed on after the first was
        fleet.send(signal.SIGHUP)
        fleet.wait_event("reloading", count=count)
    test_each_web_process_serves(fleet)
    assert fleet.web_pids() == before
    assert len(fleet.events("process_died")) == died

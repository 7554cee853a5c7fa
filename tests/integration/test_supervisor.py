"""The processes of one host: started, replaced, told, stopped; with real processes and a real Valkey."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys

import httpx
import pytest
import redis
import structlog

from harness.waiting import DEADLINE_S, until, until_true
from integration.processes import ServeProcess, environment, is_running
from proxy.clock import SystemClock
from proxy.errors import OperationalError
from proxy.listeners import bind, serves_anything_to_anyone
from proxy.settings import load_settings
from proxy.store.datadir import socket_path
from proxy.store.embedded import EmbeddedValkey
from proxy.supervisor import RestartDelay, Supervisor


def facts(serve: ServeProcess) -> dict:
    return json.loads(serve.get("/")[1])


def all_gone(pids) -> None:
    until_true(lambda: not any(map(is_running, pids)), f"gone: {pids}")


@pytest.fixture
def store(tmp_path):
    with redis.Redis(unix_socket_path=str(socket_path(tmp_path / "data"))) as client:
        yield client


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Two web processes and a Valkey, for tests that leave them as they were."""
    with ServeProcess.with_standin(tmp_path_factory.mktemp("fleet") / "data", WORKERS=2) as serve:
        serve.wait_ready()
        serve.wait_event("valkey_up")
        yield serve


def test_children_know_what_was_decided(fleet):
    told = facts(fleet)
    environ = told["environ"]
    assert environ["FEEDPROXY_WORKERS"] == "2"
    assert environ["FEEDPROXY_PORT"] == fleet.base_url.rpartition(":")[2]
    with redis.Redis.from_url(environ["FEEDPROXY_REDIS_URL"]) as client:
        assert client.ping()
        wanted = {
            "maxmemory": str(256 * 1024 * 1024),
            "maxmemory-policy": "volatile-lru",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "port": "0",
            "unixsocketperm": "700",
        }
        assert client.config_get(*wanted) == wanted


def test_a_dead_child_is_replaced_and_everyone_knows(fleet):
    before = fleet.web_pids()
    victim = facts(fleet)["pid"]
    ready_so_far = len(fleet.events("web_ready"))
    os.kill(victim, signal.SIGKILL)
    fleet.wait_event("process_died", exit_code=-signal.SIGKILL)
    fleet.wait_event("web_ready", count=ready_so_far + 1)
    fleet.wait_ready()
    after = fleet.web_pids()
    assert len(after) == 2
    assert len(set(before) & set(after)) == 1
    assert (facts(fleet)["ready"], facts(fleet)["expected"]) == (2, 2)


def test_children_learn_when_one_of_them_is_missing(tmp_path):
    hold = tmp_path / "hold"
    with ServeProcess.with_standin(tmp_path / "data", WORKERS=2, STANDIN_HOLD=hold) as serve:
        serve.wait_ready()
        hold.touch()  # the replacement will not become ready
        os.kill(facts(serve)["pid"], signal.SIGKILL)
        until_true(lambda: facts(serve)["ready"] == 1, "the other one knows")
        assert serve.get("/readyz")[0] == 503
        hold.unlink()
        serve.wait_ready()
        assert facts(serve)["ready"] == 2


def test_hangups_are_passed_on(fleet):
    before = facts(fleet)["hangups"]
    fleet.send(signal.SIGHUP)
    until_true(lambda: facts(fleet)["hangups"] > before, "SIGHUP reached a child")
    assert fleet.exit_code() is None


def test_a_hangup_waits_for_a_child_that_is_not_ready(tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    with ServeProcess.with_standin(tmp_path / "data", STANDIN_HOLD=hold) as serve:
        serve.wait_event("web_started")
        serve.send(signal.SIGHUP)
        serve.wait_event("reloading")
        hold.unlink()
        serve.wait_ready()
        until_true(lambda: facts(serve)["hangups"] == 1, "SIGHUP reached the child")
        assert not serve.events("process_died")


def test_children_and_valkey_are_out_of_the_terminals_reach(fleet):
    sessions = {os.getsid(pid) for pid in (fleet.pid, fleet.valkey_pid(), *fleet.web_pids())}
    assert len(sessions) == 4


def test_open_files_are_raised_to_what_is_allowed(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536)
    code = "import resource, proxy.spawning as s; s.raise_open_files_limit()"
    code += "; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard)),
    )
    assert int(done.stdout) == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing_and_exits_0(tmp_path, number):
    with ServeProcess.with_standin(tmp_path / "data", WORKERS=2) as serve:
        serve.wait_ready()
        serve.wait_event("valkey_up")
        serve.wait_event("worker_ready")
        started = serve.started_pids()
        assert len(started) == 4
        assert serve.terminate(number) == 0
        assert not any(map(is_running, started))
        order = [event["event"] for event in serve.events()]
        assert order[-1] == "stopped"
        assert not serve.events("process_died")
        assert not serve.events("drain_cut_short")


def test_a_stop_right_after_the_start_leaves_nothing(tmp_path):
    with ServeProcess.with_standin(tmp_path / "data") as serve:
        serve.wait_event("listening")
        assert serve.terminate() == 0
        assert not any(map(is_running, serve.started_pids()))


async def test_a_child_that_hangs_is_replaced(tmp_path):
    """A web process and the worker stand still; both are ended, and others are at work in their places."""
    environ = environment(tmp_path / "data", LOG_LEVEL="error", UPSTREAM="http://127.0.0.1:9")
    settings = load_settings(environ)
    valkey = EmbeddedValkey(settings.data_dir, memory_mb=64)
    with bind("127.0.0.1", 0) as listener, structlog.testing.capture_logs() as logs:

        def ready() -> dict[int, int]:
            of = ("web_ready", "worker_ready")
            return {told["slot"]: told["pid"] for told in logs if told["event"] in of}

        def hung() -> set[int]:
            return {told["pid"] for told in logs if told["event"] == "child_hung"}

        supervisor = Supervisor(settings, environ, listener=listener, valkey=valkey, hung_s=4.0)
        running = asyncio.create_task(supervisor.run())
        try:
            await until(lambda: ready().keys() == {0, 1}, deadline_s=DEADLINE_S)
            stopped = ready()
            for pid in stopped.values():
                os.kill(pid, signal.SIGSTOP)
            await until(lambda: hung() >= set(stopped.values()), deadline_s=DEADLINE_S)
            await until(
                lambda: all(ready()[slot] != stopped[slot] for slot in stopped),
                deadline_s=DEADLINE_S,
                every_s=0.05,
            )
            assert not any(map(is_running, stopped.values()))
            async with httpx.AsyncClient(timeout=DEADLINE_S) as client:
                port = listener.getsockname()[1]
                assert (await client.get(f"http://127.0.0.1:{port}/livez")).status_code == 200
        finally:
            supervisor.stop()
            await running


def test_a_child_that_will_not_go_is_killed_at_once_by_a_second_stop(tmp_path):
    with ServeProcess.with_standin(tmp_path / "data", STANDIN_IGNORES_SIGTERM=1) as serve:
        serve.wait_ready()
        started = serve.started_pids()
        clock = SystemClock()
        asked_at = clock.steady()
        serve.send(signal.SIGINT)
        serve.wait_event("stopping")
        serve.send(signal.SIGINT)
        assert serve.wait() == 0
        assert clock.steady() - asked_at < 8  # what it would have been given to drain
        assert serve.events("drain_cut_short")
        assert not any(map(is_running, started))


def test_children_die_with_a_killed_supervisor(tmp_path):
    with ServeProcess.with_standin(tmp_path / "data", WORKERS=2) as serve:
        serve.wait_ready()
        children = serve.web_pids()
        assert len(children) == 2
        serve.kill()
        all_gone(children)


def test_a_killed_serve_starts_again_on_its_data(tmp_path, store):
    with ServeProcess.with_standin(tmp_path / "data") as first:
        first.wait_event("valkey_up")
        store.set("kept", "yes")
        orphan = first.valkey_pid()
        first.kill()
        assert is_running(orphan)
        with ServeProcess.with_standin(tmp_path / "data") as second:
            second.wait_event("valkey_up")
            assert second.wait_event("valkey_orphan_ended")["pid"] == orphan
            assert not is_running(orphan)
            assert store.get("kept") == b"yes"
            second.wait_ready()
            assert second.terminate() == 0


def test_a_frozen_orphan_without_socket_and_pid_file_is_found(tmp_path, store):
    data_dir = tmp_path / "data"
    with ServeProcess.with_standin(data_dir) as first:
        first.wait_event("valkey_up")
        store.set("kept", "yes")
        orphan = first.valkey_pid()
        first.kill()
        os.kill(orphan, signal.SIGSTOP)
        socket_path(data_dir).unlink()
        (data_dir / "valkey.pid").unlink()
        with ServeProcess.with_standin(data_dir) as second:
            second.wait_event("valkey_up")
            assert not is_running(orphan)
            store.connection_pool.disconnect()
            assert store.get("kept") == b"yes"


def test_a_killed_valkey_comes_back_with_its_data(tmp_path, store):
    with ServeProcess.with_standin(tmp_path / "data") as serve:
        serve.wait_event("valkey_up")
        store.set("kept", "yes")
        os.kill(serve.valkey_pid(), signal.SIGKILL)
        serve.wait_event("valkey_up", count=2)
        store.connection_pool.disconnect()
        assert store.get("kept") == b"yes"
        assert serve.wait_event("process_died")["process"] == "valkey"
        serve.wait_ready()


def test_a_second_serve_on_the_same_data_names_the_first(fleet):
    with ServeProcess(fleet.data_dir) as second:
        assert second.wait() == 1
        assert f"{fleet.data_dir} is in use by feedproxy serve, pid {fleet.pid}\n" in second.log_text()
    assert facts(fleet)["ready"] == 2


def test_a_lock_of_a_dead_serve_does_not_matter(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lock").write_text("1\n")
    with ServeProcess.with_standin(tmp_path / "data") as serve:
        serve.wait_event("listening")
        assert (tmp_path / "data" / "lock").read_text() == f"{serve.pid}\n"


def test_with_a_redis_of_the_operators_own_there_is_no_valkey_and_no_data(tmp_path):
    with ServeProcess.with_standin(tmp_path / "data", REDIS_URL="redis://127.0.0.1:1/0") as serve:
        serve.wait_ready()
        told = facts(serve)
        assert told["environ"]["FEEDPROXY_REDIS_URL"] == "redis://127.0.0.1:1/0"
        assert serve.terminate() == 0
        assert not serve.events("valkey_started")
        assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["with space", 'quo"te', "back\\slash", "%41 ünï#?;cödé", "long" * 40])
def test_any_data_directory_will_do(tmp_path, name):
    data_dir = tmp_path / name
    with ServeProcess.with_standin(data_dir) as serve:
        serve.wait_event("valkey_up")
        serve.wait_ready()
        with redis.Redis.from_url(facts(serve)["environ"]["FEEDPROXY_REDIS_URL"]) as client:
            client.set("kept", "yes")
        with redis.Redis(unix_socket_path=str(socket_path(data_dir))) as client:
            assert client.get("kept") == b"yes"
        assert (data_dir / "appendonlydir").is_dir()
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert serve.terminate() == 0
    runtime_dir = socket_path(data_dir).parent
    if runtime_dir != data_dir:
        assert runtime_dir.stat().st_mode & 0o777 == 0o700
        runtime_dir.rmdir()


def test_a_busy_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "proxy.cli", "serve", "--port", str(port)],
            env=environment(tmp_path / "data"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == f"feedproxy: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_addresses_and_names_can_be_listened_on(host):
    with (
        bind(host, 0) as listener,
        socket.create_connection(listener.getsockname()[:2], timeout=10) as client,
    ):
        assert client.getpeername()[1] == listener.getsockname()[1]


def test_of_a_names_addresses_ipv4_is_taken(monkeypatch):
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: both)
    with bind("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_name_that_does_not_exist_is_named():
    with pytest.raises(OperationalError, match=r"cannot listen on no\.such\.host\.invalid:80: "):
        bind("no.such.host.invalid", 80)


def test_restarts_slow_down_and_recover():
    delay = RestartDelay()
    assert [delay.after(1) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert delay.after(60) == 0.1
    assert delay.after(59) == 0.2


@pytest.mark.parametrize(
    ("host", "more", "told"),
    [
        ("127.0.0.1", {}, False),
        ("::1", {}, False),
        ("::ffff:127.0.0.1", {}, False),
        ("0.0.0.0", {}, True),
        ("::", {}, True),
        ("192.0.2.1", {}, True),
        ("192.0.2.1", {"FEEDPROXY_ACTORS": "alice.test"}, False),
        # A server in front of us may be anywhere.
        ("127.0.0.1", {"FEEDPROXY_PUBLIC_URL": "https://feeds.example"}, True),
    ],
)
def test_an_operator_who_serves_anything_to_anyone_is_told(host, more, told):
    assert serves_anything_to_anyone(load_settings(more), host) is told


def test_the_warning_is_in_the_log(tmp_path):
    with ServeProcess.with_standin(tmp_path / "open", PUBLIC_URL="https://feeds.example") as serve:
        warning = serve.wait_event("every_feed_is_served")
        assert warning["level"] == "warning"
        assert "FEEDPROXY_ACTORS" in warning["remedy"]

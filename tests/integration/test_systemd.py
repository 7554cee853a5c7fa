"""What a service manager hands over and is told, by real processes: systemd's own protocol on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from harness.waiting import until_true
from integration.processes import ServeProcess
from proxy.errors import OperationalError, UsageError
from proxy.spawning import OURS_ALONE
from proxy.systemd import ServiceManager, inherited_listener

# The socket comes as descriptor 3, and LISTEN_PID names the process itself.
ACTIVATE = (
    "import os, sys; os.dup2(int(os.environ['ACTIVATED_FD']), 3); "
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execvp(sys.argv[1], sys.argv[1:])"
)
SERVE = (sys.executable, "-P", "-m", "proxy.cli", "serve")


def activated(command) -> tuple[str, ...]:
    return (sys.executable, "-IS", "-c", ACTIVATE, *command)


def environment_of(pid) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


class Manager:
    """The socket that NOTIFY_SOCKET names."""

    def __init__(self, address) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(30)
        self.told: list[str] = []

    def until_told(self, wanted: str) -> None:
        """Read on until a message has that line."""
        while True:
            lines = self._socket.recv(4096).decode().splitlines()
            self.told += lines
            if wanted in lines:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    name = str(tmp_path / "notify") if request.param == "path" else f"@feedproxy-test-{os.getpid()}"
    with contextlib.closing(Manager(name)) as manager:
        yield manager


def test_the_manager_learns_of_start_reload_watchdog_and_end(tmp_path, monkeypatch, manager):
    hold = tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with ServeProcess.with_standin(tmp_path / "data", WORKERS=2, STANDIN_HOLD=hold) as serve:
        serve.wait_event("web_started", count=2)
        serve.send(signal.SIGHUP)
        manager.until_told("RELOADING=1")
        manager.until_told("WATCHDOG=1")
        assert "READY=1" not in manager.told, "no process answers yet"
        hold.unlink()
        manager.until_told("READY=1")
        assert "STATUS=2 of 2 web processes are up" in manager.told
        for pid in serve.web_pids():
            names = {pair.partition("=")[0] for pair in environment_of(pid)}
            assert "FEEDPROXY_WORKERS" in names
            assert not names & OURS_ALONE, "what was said to one process is not said to its children"
        manager.told.clear()
        serve.send(signal.SIGHUP)
        manager.until_told("RELOADING=1")
        manager.until_told("READY=1")
        assert any(line.startswith("MONOTONIC_USEC=") for line in manager.told)
        assert serve.terminate() == 0
        manager.until_told("STOPPING=1")


async def test_without_a_manager_and_with_one_that_is_gone_nothing_happens(tmp_path):
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000"}):
        manager = ServiceManager(environ)
        async with manager.watched():
            manager.ready()
            await asyncio.sleep(0)


def test_a_watchdog_of_another_process_is_not_ours_and_nonsense_is_named():
    ServiceManager({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "x", "WATCHDOG_PID": "1"})
    with pytest.raises(UsageError, match=r"WATCHDOG_USEC=x is no number of microseconds"):
        ServiceManager({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "x"})


def test_sockets_of_another_process_are_not_ours():
    assert inherited_listener({}) is None
    assert inherited_listener({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) is None
    assert inherited_listener({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}) is None


def test_more_than_one_socket_is_refused():
    with pytest.raises(OperationalError, match=r"LISTEN_FDS=2: give feedproxy one socket"):
        inherited_listener({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"})


@pytest.mark.parametrize("kind", ["connected", "file"])
def test_what_is_no_listening_socket_is_refused(tmp_path, kind):
    with contextlib.ExitStack() as stack:
        if kind == "file":
            number = stack.enter_context((tmp_path / "file").open("wb")).fileno()
        else:
            one, other = socket.socketpair()
            stack.enter_context(other)
            number = stack.enter_context(one).fileno()
        done = subprocess.run(
            activated(SERVE),
            env={**os.environ, "ACTIVATED_FD": str(number), "FEEDPROXY_DATA_DIR": str(tmp_path / "data")},
            pass_fds=(number,),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "descriptor 3 is no " in done.stderr


class Load:
    """Clients that make a new connection for each request, without a pause."""

    def __init__(self, url: str, clients: int = 2) -> None:
        self.statuses: list[int] = []
        self.failures: list[str] = []
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                self.statuses.append(
                    httpx.get(self._url, timeout=60, trust_env=False, verify=False).status_code
                )
            except httpx.HTTPError as error:
                self.failures.append(repr(error))


def test_a_restart_behind_an_inherited_socket_refuses_nobody(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        monkeypatch.setenv("ACTIVATED_FD", str(listener.fileno()))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/livez"

        def serve():
            command = activated(SERVE)
            return ServeProcess(tmp_path / "data", command=command, pass_fds=(listener.fileno(),))

        with contextlib.ExitStack() as stack, Load(url) as load:
            for stop in (True, False):
                current = stack.enter_context(serve())
                current.wait_ready()
                answered = len(load.statuses)
                until_true(lambda: len(load.statuses) > answered + 20, "it is in use")  # noqa: B023
                if stop:
                    assert current.terminate() == 0
        assert load.failures == []
        assert set(load.statuses) == {200}


def test_a_unix_socket_will_do(tmp_path, monkeypatch):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setenv("ACTIVATED_FD", str(listener.fileno()))
        with ServeProcess(
            tmp_path / "data", command=activated(SERVE), pass_fds=(listener.fileno(),)
        ) as serve:
            assert serve.wait_event("listening")["socket"] == str(path)
            serve.wait_event("web_ready")
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
                assert client.get("/livez").status_code == 200
            assert serve.terminate() == 0

"""The real network and the real proxy as processes of the test run, and how to wait for them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from harness.waiting import until_true

HERE = Path(__file__).parent
START_DEADLINE_S = 180.0
COMMAND_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
_PLACEHOLDER = re.compile(r"\{(did|uri|rkey|cursor):(\w+)\}")

# The tests ask far more in a minute than a widget does; what guards the upstream is tried elsewhere.
UNHURRIED = {
    "UPSTREAM_RPS": "1000",
    "UPSTREAM_BURST": "1000",
    "UPSTREAM_CONCURRENCY": "50",
    "CLIENT_EXEMPT": "127.0.0.0/8,::1/128",
}


@contextlib.contextmanager
def plain_client(base_url: str) -> Iterator[httpx.Client]:
    """A client that adds no header of its own which could change an answer."""
    # There is no TLS on loopback, and loading the certificates for it takes longer than most tests.
    with httpx.Client(base_url=base_url, trust_env=False, verify=False, timeout=30) as client:
        for name in ("accept", "accept-encoding"):
            del client.headers[name]
        yield client


class Network:
    """The reference servers, run by network.mjs with `options`. `with` starts and ends them."""

    def __init__(self, log: Path, *options: str) -> None:
        self._log = log
        self._options = options
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._commands = 0
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if not (HERE / "node_modules").is_dir():
            raise RuntimeError(f"the reference servers are not installed: run {HERE / 'install.sh'}")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["node", str(HERE / "network.mjs"), *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.ready = self._next(START_DEADLINE_S)["ready"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            code = self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(STOP_DEADLINE_S)
        self._process.stdout.close()
        if state := self.ready.get("state"):
            shutil.rmtree(state, ignore_errors=True)  # it is gone already, unless the process was killed
        assert code == 0, f"network.mjs ended with {code}: {self._log_tail()}"

    def do(self, command: str, **parameters: Any) -> dict[str, Any]:
        """Have the network do something; what it says of it. The AppView knows of it then."""
        self._commands += 1
        line = json.dumps({"id": self._commands, "do": command, **parameters})
        self._process.stdin.write(f"{line}\n")
        answer = self._next(COMMAND_DEADLINE_S)
        assert answer["id"] == self._commands
        assert "done" in answer, f"{command}: {answer['error']}"
        return answer["done"]

    def did(self, name: str) -> str:
        return self.ready["accounts"][name]["did"]

    def uri(self, record: str) -> str:
        return self.ready["records"][record]["uri"]

    @property
    def appview(self) -> str:
        return self.ready["urls"]["appview"]

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _next(self, deadline_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=deadline_s)
        except queue.Empty:
            raise AssertionError(
                f"network.mjs said nothing for {deadline_s:g} s: {self._log_tail()}"
            ) from None
        assert line is not None, f"network.mjs ended: {self._log_tail()}"
        return json.loads(line)

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]


class Proxy:
    """`feedproxy serve` in front of an upstream. It may be stopped and started again on its data."""

    def __init__(self, upstream: str, directory: Path, settings: dict[str, str]) -> None:
        self._directory = directory
        self._settings = UNHURRIED | {"UPSTREAM": upstream, "DATA_DIR": str(directory / "data")} | settings
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEEDPROXY_")}
        settings = {f"FEEDPROXY_{name}": value for name, value in self._settings.items()}
        feedproxy = str(Path(sys.executable).with_name("feedproxy"))
        # A test run that is killed takes it along.
        command = ["setpriv", "--pdeathsig", "TERM", feedproxy, "serve", "--port", str(port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=inherited | settings)
        until_true(self._ready, "feedproxy is ready", deadline_s=START_DEADLINE_S)

    def stop(self) -> None:
        """End it as an operator would, and see that it says it ended well."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"feedproxy did not end on SIGTERM: {self._log_tail()}") from None
        assert code == 0, f"feedproxy ended with {code}: {self._log_tail()}"

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"feedproxy ended: {self._log_tail()}"
        try:
            with plain_client(self.url) as client:
                return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def _log(self) -> Path:
        return self._directory / "feedproxy.log"

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]


@contextlib.contextmanager
def running_proxy(network: Network, directory: Path, **settings: str) -> Iterator[Proxy]:
    """A proxy in front of the network's AppView for as long as the block lasts."""
    proxy = Proxy(network.appview, directory, settings)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()


def run_script(name: str, *arguments: str, facts: dict[str, Any]) -> Any:
    """What a script of clients/ prints as JSON, told `facts` in the same way."""
    run = subprocess.run(
        ["node", str(HERE / "clients" / name), *arguments],
        input=json.dumps(facts),
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def fill(template: str, network: Network, cursors: dict[str, str]) -> str:
    """A request target with what stands for DIDs, record URIs, record keys and cursors filled in."""

    def value(match: re.Match[str]) -> str:
        kind, name = match.groups()
        match kind:
            case "did":
                return quote(network.did(name), safe="")
            case "uri":
                return quote(network.uri(name), safe="")
            case "rkey":
                return network.uri(name).rpartition("/")[2]
            case _:
                return quote(cursors[name], safe="")

    return _PLACEHOLDER.sub(value, template)


def cache_status(response: httpx.Response) -> dict[str, str | bool]:
    """Our member of Cache-Status (RFC 9211) as a mapping; a parameter without value is True."""
    name, *parameters = (part.strip() for part in response.headers["cache-status"].split(";"))
    assert name == "feedproxy"
    pairs = (parameter.partition("=") for parameter in parameters)
    return {key: value.strip('"') if equals else True for key, equals, value in pairs}


def assert_xrpc_error(response: httpx.Response) -> dict[str, str]:
    """An error that AT Protocol clients understand; its body."""
    assert response.status_code >= 400
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert isinstance(body["error"], str)
    assert body["error"]
    assert isinstance(body["message"], str)
    return body


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

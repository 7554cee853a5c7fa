"""How `serve` starts: a web process loads beside it, is told what it is, and outlives no start that fails."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.waiting import DEADLINE_S, until_true
from integration.processes import ServeProcess, environment, is_running
from proxy.spawning import OPEN_FILES_MAX, OURS_ALONE
from proxy.store.datadir import data_dir_lock

SERVE = (sys.executable, "-P", "-m", "proxy.cli", "serve")
TOKEN = "t" * 32


def children_of(pid: int) -> list[int]:
    """Its children that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text(encoding="latin-1").rpartition(")")[2].split()[:2]
            if int(parent) == pid and state not in "ZX":
                found.append(int(path.parent.name))
    return found


class Starting:
    """A `serve` that waits for its settings: `token` is a pipe that it has to read one from."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.token = directory / "token"
        os.mkfifo(self.token)
        self.process = subprocess.Popen(
            SERVE,
            env=environment(directory / "data", ADMIN_TOKEN_FILE=self.token, **settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.process)
            stack.callback(self.process.terminate)  # what it has started ends with it
            self._writer = stack.enter_context(until_true(self._opened, "it reads its settings"))
            (self.child,) = children_of(self.process.pid)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc):
        self._stack.close()

    def _opened(self):
        try:
            return open(os.open(self.token, os.O_WRONLY | os.O_NONBLOCK), "w")  # noqa: PTH123
        except OSError:  # nobody reads
            return None

    def give(self, token: str) -> None:
        """Let it and its children go on with this token."""
        file = self.token.with_name("file")
        file.write_text(token)
        file.replace(self.token)
        self._writer.write(token)
        self._writer.close()

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it wrote; by then nobody may be left who could write more."""
        code = self.process.wait(DEADLINE_S)
        os.set_blocking(self.output.fileno(), False)
        text = self.output.read()
        assert text is not None, "somebody may write yet, and has not"
        assert text == b"" or self.output.read() == b"", "somebody may write yet"
        return code, text.decode()


@pytest.fixture
def starting(tmp_path) -> Iterator[Starting]:
    with Starting(tmp_path) as serve:
        yield serve


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 0, ""), (signal.SIGINT, 130, "")],
)
def test_a_stop_before_anything_is_known_leaves_nothing(starting, number, code, said):
    starting.process.send_signal(number)
    assert starting.ended() == (code, said)


def test_wrong_settings_leave_nothing(starting):
    starting.give("short")
    assert starting.ended() == (
        2,
        "feedproxy: FEEDPROXY_ADMIN_TOKEN: must have at least 32 characters\n",
    )


def test_data_in_use_leaves_nothing(starting, tmp_path):
    with data_dir_lock(tmp_path / "data"):
        starting.give(TOKEN)
        code, text = starting.ended()
    assert code == 1
    assert f"data is in use by feedproxy serve, pid {os.getpid()}" in text
    assert text.count("\n") == 1


def test_a_taken_port_leaves_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with Starting(tmp_path, PORT=port) as serve:
            serve.give(TOKEN)
            said = f"feedproxy: cannot listen on 127.0.0.1:{port}: Address already in use\n"
            assert serve.ended() == (1, said)


def test_a_killed_start_leaves_nothing(starting):
    starting.process.kill()
    assert starting.output.read() == b""  # which returns when nobody is left who could write
    until_true(lambda: not is_running(starting.child), "the child is gone")


def test_what_was_started_first_becomes_the_web_process(starting):
    starting.give(TOKEN)
    events = (json.loads(line) for line in starting.output)
    ready = next(event for event in events if event["event"] == "web_ready")
    assert ready["pid"] == starting.child
    starting.process.terminate()
    assert "stopped" in [event["event"] for event in events]
    assert starting.process.wait(DEADLINE_S) == 0


# What a process loads and starts is seen by a hook in it; the signal comes in the midst of that.
HOOKED = """
import os, signal, sys
def hook(event, arguments):
    if event == "subprocess.Popen":
        sys.stderr.write("started\\n")
    if os.environ.get("STOP_AT") in (event, arguments[0] if event == "import" else None):
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(hook)
from proxy.cli import main
main()
"""


def hooked(tmp_path, *arguments: str, stop_at: str = "") -> tuple[int, str]:
    """Exit code and stderr of `feedproxy` with these arguments."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", HOOKED, *arguments],
        env=environment(tmp_path / "data") | {"STOP_AT": stop_at},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "moment", ["subprocess.Popen", "typer", "proxy.cli.commands", "proxy.settings", "proxy.supervisor"]
)
def test_a_stop_is_heeded_from_the_first_child_on(tmp_path, moment):
    assert hooked(tmp_path, "serve", stop_at=moment) == (0, "started\n")


def test_only_serve_starts_anything(tmp_path):
    for arguments in (["serve", "--help"], ["serve", "-h"], ["config"], ["--version"]):
        assert hooked(tmp_path, *arguments) == (0, "")


# In a web process: what it has seen is written down when it ends, and one that is to be broken is.
OBSERVED = """
import atexit, json, os, sys
here, role = os.environ["HERE"], sys.orig_argv[-2:-1]
if role == ["web"]:
    if os.path.exists(f"{here}/broken"):
        os.unlink(f"{here}/broken")
        sys.modules["proxy.runtime"] = None
    def write():
        with open(f"{here}/{os.getpid()}.json", "w") as file:
            json.dump(dict(os.environ), file)
    atexit.register(write)
"""
LIMITED = (
    "import os, resource, sys; limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit));"
    "os.dup2(os.open(sys.executable, os.O_RDONLY), 0);"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def observe(directory: Path) -> dict[str, str]:
    """Variables with which processes of Python behave as above."""
    (directory / "sitecustomize.py").write_text(OBSERVED)
    return {"PYTHONPATH": str(directory), "HERE": str(directory)}


class Life:
    """What is to be seen of a web process and how it came to be."""

    def __init__(self, serve: ServeProcess, directory: Path) -> None:
        (self.pid,) = serve.web_pids()
        self._directory = directory
        self.session = os.getsid(self.pid)
        self.files_max = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)[0]
        self.stdin = str(Path(f"/proc/{self.pid}/fd/0").readlink())
        self.words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[1:5]
        ours = _open_in(serve.pid)
        self.shared = Counter({name: count for name, count in _open_in(self.pid).items() if name in ours})

    def environ(self) -> dict[str, str]:
        """The environment that it has had; it must have ended."""
        return json.loads((self._directory / f"{self.pid}.json").read_text())


def _open_in(pid: int) -> Counter[str]:
    """What a process has open, as often as it has."""
    names: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            name = str(path.readlink())
            names[name] += not name.startswith("anon_inode:")  # each has its own under the same name
    return +names


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """The first web process of a `serve`, and the one that has replaced it; where; how it ended."""
    directory = tmp_path_factory.mktemp("lives")
    stray, other_end = os.pipe()
    command = (sys.executable, "-IS", "-c", LIMITED, *SERVE, "--workers", "1", "--host", "127.0.0.1")
    given = dict.fromkeys(OURS_ALONE, "7") | observe(directory)
    given["NOTIFY_SOCKET"] = str(directory / "gone")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        serve = ServeProcess(
            directory / "data", command=command, pass_fds=(stray,), OPS_LISTEN="127.0.0.1:0", HOST="x"
        )
    with serve:
        os.close(stray)
        serve.wait_ready()
        first = Life(serve, directory)
        os.kill(first.pid, signal.SIGTERM)
        serve.wait_event("web_ready", count=2)
        second = Life(serve, directory)
        base_url, told = serve.base_url, serve.wait_event("process_died")
        assert serve.terminate() == 0
    os.close(other_end)
    return first, second, base_url, told


def test_the_first_web_process_is_replaced(lives):
    first, second, _, told = lives
    assert (told["process"], told["exit_code"]) == ("web-0", 0)
    assert first.pid != second.pid


def test_each_web_process_sees_the_environment_that_was_decided(lives):
    first, second, base_url, _ = lives
    environ = first.environ()
    assert environ == second.environ()
    assert environ["FEEDPROXY_HOST"] == "127.0.0.1"
    assert environ["FEEDPROXY_PORT"] == base_url.rpartition(":")[2]
    assert environ["FEEDPROXY_WORKERS"] == "1"
    assert environ["FEEDPROXY_REDIS_URL"].startswith("unix://")
    assert environ["PATH"] == os.environ["PATH"]
    assert not environ.keys() & OURS_ALONE


def test_each_web_process_has_open_what_it_was_handed(lives):
    first, second, _, _ = lives
    assert first.shared == second.shared
    kinds = Counter(name.partition(":")[0] for name in first.shared.elements())
    assert kinds["socket"] == 2  # the listener, and the one for operators
    assert kinds["pipe"] == 0  # what `serve` has been given besides
    (tally,) = (name for name in first.shared if name.startswith("/memfd:"))
    assert first.shared[tally] == 1
    assert first.stdin == second.stdin == os.devnull


def test_each_web_process_is_begun_alike(lives):
    first, second, _, _ = lives
    assert first.words == second.words == [b"-P", b"-m", b"proxy.child", b"web"]
    assert first.session != second.session
    assert os.getsid(0) not in (first.session, second.session)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert first.files_max == second.files_max == min(hard, OPEN_FILES_MAX)


def test_a_first_web_process_that_cannot_be_loaded_is_named_and_replaced(tmp_path, monkeypatch):
    for name, value in observe(tmp_path).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "broken").touch()
    with ServeProcess(tmp_path / "data") as serve:
        died = serve.wait_event("process_died")
        assert (died["process"], died["exit_code"]) == ("web-0", 1)
        assert "import of proxy.runtime halted" in serve.log_text()
        serve.wait_ready()
        assert serve.terminate() == 0

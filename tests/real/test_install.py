"""What deploy/ tells Docker, systemd and Prometheus, done and read by themselves or step by step."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from real.harness import HERE

from harness.waiting import until_true

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FEEDPROXY = Path(sys.executable).with_name("feedproxy")


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


def plain_environ(**more):
    ours = ("FEEDPROXY_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Image:
    """The Dockerfile's first stage, carried out in a directory that stands for the image's root."""

    def __init__(self, root):
        self.root = root
        text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
        _, self.build, self.final = re.split(r"^FROM .*$", text, flags=re.MULTILINE)
        self.environ = dict(re.findall(r"(\w+)=(\S+)", self._only("ENV", self.final)))

    def make(self):
        source = self.root / "src"
        source.mkdir()
        for line in self.build.splitlines():
            verb, _, rest = line.partition(" ")
            if verb == "COPY":
                *names, target = rest.split()
                for name in names:
                    self._copy(ROOT / name, source / target if target != "./" else source / name)
            elif verb == "RUN":
                done = run("sh", "-ec", self._here(rest), cwd=source, env=plain_environ())
                assert done.returncode == 0, (rest, done.stdout, done.stderr)
        shutil.rmtree(source)  # the next stage has none of it

    def command(self, *words):
        """A command of the final stage, its path made that of the directory."""
        return [str(self.root / "opt" / "feedproxy" / "bin" / words[0]), *words[1:]]

    def instruction(self, verb):
        """The command that it names, as a list."""
        return re.findall(r'"([^"]*)"', self._only(verb, self.final))

    def _only(self, verb, stage):
        (line,) = [line for line in stage.splitlines() if line.startswith(f"{verb} ")]
        return line

    def _here(self, command):
        for name, here in (("/opt/", f"{self.root}/opt/"), ("python -m venv", f"{sys.executable} -m venv")):
            command = command.replace(name, here)
        return command

    def _copy(self, source, target):
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def written(root):
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_what_the_dockerfile_does_gives_a_feedproxy_that_writes_nowhere(tmp_path):
    image = Image(tmp_path)
    image.make()
    before = written(tmp_path / "opt")
    port = free_port()
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        **{name: value for name, value in image.environ.items() if name != "PATH"},
        "FEEDPROXY_DATA_DIR": str(tmp_path / "data"),
        "FEEDPROXY_PORT": str(port),
        "FEEDPROXY_REDIS_URL": f"unix://{tmp_path}/away.sock",
    }
    entry, (argument,) = image.instruction("ENTRYPOINT"), image.instruction("CMD")
    probe = image.command(*image.instruction("HEALTHCHECK"))
    assert run(*probe, env=environ).returncode == 1
    with (tmp_path / "log").open("wb") as log:
        serve = subprocess.Popen(
            image.command(*entry, argument), env=environ, cwd="/", stdout=log, stderr=log
        )
    try:
        until_true(lambda: run(*probe, env=environ).returncode == 0, "it is healthy")
    finally:
        serve.terminate()
        assert serve.wait(30) == 0
    assert written(tmp_path / "opt") == before
    assert not (tmp_path / "data").exists()


@pytest.fixture
def units(tmp_path):
    """The units with the program where it is here."""
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text(encoding="utf-8").replace("/opt/feedproxy/bin/feedproxy", str(FEEDPROXY))
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    return tmp_path


def test_systemd_understands_the_units(units):
    names = sorted(path.name for path in units.iterdir())
    assert names == ["feedproxy-worker@.service", "feedproxy.service", "feedproxy.socket"]
    paths = [str(units / name.replace("@.", "@1.")) for name in names]
    shutil.copy(units / names[0], paths[0])
    done = run("systemd-analyze", "verify", "--man=no", *paths)
    # Of other units on this host it may say what it likes.
    assert [line for line in done.stderr.splitlines() if "feedproxy" in line] == []
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["feedproxy.service", "feedproxy-worker@.service"])
def test_systemd_finds_little_that_the_services_may_do(units, name):
    # Tenths: 2.0 of 10, where 10 may do anything.
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", str(units / name))
    assert done.returncode == 0, done.stdout


def test_systemd_hands_over_its_socket(tmp_path):
    port = free_port()
    environ = plain_environ(FEEDPROXY_DATA_DIR=str(tmp_path / "data"), FEEDPROXY_PORT="1")
    passed = [f"-E{name}" for name in ("FEEDPROXY_DATA_DIR", "FEEDPROXY_PORT")]
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *passed, str(FEEDPROXY), "serve"]
    with (tmp_path / "log").open("wb") as log:
        serve = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:

        def answered():
            assert serve.poll() is None, (tmp_path / "log").read_text()
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/livez", timeout=60, verify=False)
            except httpx.ConnectError:
                return False  # it does not listen yet
            return answer.status_code == 200

        until_true(answered, "the service behind the socket answers")
    finally:
        serve.terminate()
        assert serve.wait(30) == 0, (tmp_path / "log").read_text()


def test_prometheus_understands_its_configuration_and_rules():
    done = run("promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert done.returncode == 0, done.stderr
    assert "10 rules found" in done.stdout


def test_each_alert_goes_off_when_it_should_and_none_else(tmp_path):
    text = (HERE / "alerts.test.yml").read_text(encoding="utf-8")
    tests = tmp_path / "alerts.test.yml"
    tests.write_text(text.replace("[ALERTS]", f"[{shlex.quote(str(DEPLOY / 'prometheus' / 'alerts.yml'))}]"))
    done = run("promtool", "test", "rules", str(tests))
    assert done.returncode == 0, done.stdout + done.stderr

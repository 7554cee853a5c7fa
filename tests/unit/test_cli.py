"""The command line as a process: its output and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from proxy.version import VERSION


@pytest.fixture
def feedproxy(tmp_path):
    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FEEDPROXY_")}
        environ = {**kept, "FEEDPROXY_DATA_DIR": str(tmp_path / "data"), "NO_COLOR": "1"}
        environ |= {f"FEEDPROXY_{name}": value for name, value in settings.items()}
        command = [sys.executable, "-P", "-m", "proxy.cli", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    return run


def imported_by(feedproxy, monkeypatch, *arguments, **settings):
    """The modules that a command imports."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = feedproxy(*arguments, **settings)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}


def test_version(feedproxy):
    done = feedproxy("--version")
    assert (done.returncode, done.stdout) == (0, f"feedproxy {VERSION}\n")


def test_an_unknown_setting_is_one_line_and_exit_2(feedproxy):
    done = feedproxy("serve", PROT="8080")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "feedproxy: FEEDPROXY_PROT is not a setting; the nearest is FEEDPROXY_PORT\n"


@pytest.mark.parametrize("arguments", [("serve", "--port", "70000"), ("serve", "--workers", "0")])
def test_a_wrong_value_is_one_line_and_exit_2(feedproxy, arguments):
    done = feedproxy(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"feedproxy: FEEDPROXY_{arguments[1][2:].upper()}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("token", ["too-short", "twenty characters, but spaces"])
def test_a_token_that_can_be_none_is_one_line_and_exit_2(feedproxy, tmp_path, monkeypatch, token):
    config = tmp_path / "feedproxy.toml"
    config.write_text(
        '[[accounts]]\nname = "main"\nidentifier = "alice.example.com"\npassword_env = "MAIN_PASSWORD"\n'
        '[[sites]]\nname = "blog"\ntoken_env = "BLOG_TOKEN"\naccounts = ["main"]\n'
    )
    monkeypatch.setenv("BLOG_TOKEN", token)
    done = feedproxy("serve", "--port", "0", CONFIG=str(config))
    assert done.returncode == 2
    assert done.stderr.startswith("feedproxy: BLOG_TOKEN: a token must ")
    assert done.stderr.count("\n") == 1
    assert token not in done.stderr


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "--nonsense"), ("serve", "--port", "x"), ()])
def test_wrong_use_is_exit_2(feedproxy, arguments):
    done = feedproxy(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_address_that_is_not_ours_is_one_line_and_exit_1(feedproxy):
    done = feedproxy("serve", "--host", "192.0.2.1", "--port", "0")
    assert done.returncode == 1
    assert done.stderr == "feedproxy: cannot listen on 192.0.2.1:0: Cannot assign requested address\n"


def test_a_data_directory_that_is_a_file_is_one_line_and_exit_1(feedproxy, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        done = feedproxy("serve", "--port", "0", DATA_DIR=str(path))
        assert done.returncode == 1
        assert done.stderr == f"feedproxy: cannot use the data directory {path}: Not a directory\n"


def test_config_prints_what_is_in_effect(feedproxy):
    done = feedproxy("config", WORKERS="3", ADMIN_TOKEN="x" * 32, REDIS_URL="redis://me:secret@db/0")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[:3] == ["FEEDPROXY_HOST=127.0.0.1", "FEEDPROXY_PORT=8080", "FEEDPROXY_WORKERS=3"]
    assert "FEEDPROXY_REDIS_URL=redis://me:********@db/0" in lines
    assert "FEEDPROXY_ADMIN_TOKEN=********" in lines
    assert "secret" not in done.stdout


@pytest.mark.parametrize("group", [(), ("jobs",), ("dead",), ("accounts",)])
def test_every_command_is_explained_in_a_line(feedproxy, group, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = feedproxy(*group, "--help")
    assert done.returncode == 0
    commands = done.stdout.partition("Commands:\n")[2].splitlines()
    explained = dict(line.split(maxsplit=1) for line in commands)
    assert explained.keys() >= ({"list"} if group else {"serve", "worker", "doctor", "jobs"})
    assert [text for text in explained.values() if not text.endswith(".") or text.endswith("...")] == []


def test_help_waits_for_nothing(feedproxy, monkeypatch):
    assert not imported_by(feedproxy, monkeypatch, "--help") & {"rich", "pydantic", "structlog", "redis"}


def test_a_list_waits_for_nothing_but_the_queue(feedproxy, monkeypatch):
    """What asks servers, and serves, takes longer to import than the whole list."""
    imported = imported_by(feedproxy, monkeypatch, "dead", "list", REDIS_URL="unix:///nowhere/s")
    assert "proxy.syndication.queue" in imported
    strangers = {"httpx", "starlette", "uvicorn", "hishel", "PIL", "selectolax", "jinja2", "rich.progress"}
    assert not imported & strangers

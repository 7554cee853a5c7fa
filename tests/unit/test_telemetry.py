"""Logs may be lost; nothing else is lost with them."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from proxy.settings import load_settings
from proxy.telemetry import configure_logging, get_logger


@pytest.fixture(autouse=True)
def as_before():
    level, handlers = logging.root.level, list(logging.root.handlers)
    yield
    structlog.reset_defaults()
    logging.basicConfig(handlers=handlers or [logging.NullHandler()], level=level, force=True)


class Broken(io.StringIO):
    def write(self, _text):
        raise BrokenPipeError

    def flush(self):
        raise OSError("no space left on device")


def test_a_sink_that_is_gone_stops_nothing():
    configure_logging(load_settings({}), role="web", target=Broken())
    structlog.get_logger().warning("event", field=1)
    logging.getLogger("anything").error("a library's line")


def test_lines_are_json_where_no_person_watches():
    out = io.StringIO()
    configure_logging(load_settings({}), role="web", target=out)
    get_logger().bind().info("event", field="\x1b[31mred\nline")
    [line] = out.getvalue().splitlines()
    assert json.loads(line)["event"] == "event"
    assert json.loads(line)["role"] == "web"
    assert "\x1b" not in line


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x9b31mred", "\u202ered", "\x1b]0;red\x07", "a\x1b[2J red"])
def test_text_does_nothing_on_a_terminal(text):
    out = io.StringIO()
    configure_logging(load_settings({"FEEDPROXY_LOG_FORMAT": "text"}), role="web", target=out)
    get_logger().info(text, field=text, many=[text])
    logging.getLogger("a.library").error(text)
    get_logger().error("crashed", exc_info=ValueError(text))
    told = out.getvalue()
    assert told.count("red") >= 5
    assert all(char.isprintable() or char == "\n" for char in told), told


def refuse(said):
    raise ValueError(said)


HOSTILE = "\x1b]0;owned\x07[red]\u202e\u009b2J\rforged"


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_others_say_is_not_obeyed_by_a_terminal(form):
    out = io.StringIO()
    configure_logging(load_settings({"FEEDPROXY_LOG_FORMAT": form}), role="web", target=out)
    get_logger().warning("event", word=HOSTILE, words=f"so {HOSTILE}\nforged", error=ValueError(HOSTILE))
    logging.getLogger("a.library").error("it said %s", f"{HOSTILE}\nforged")
    try:
        refuse(HOSTILE)
    except ValueError:
        get_logger().exception("crashed")
        logging.getLogger("a.library").exception("crashed")
    told = out.getvalue()
    assert told.count("[red]") == 6
    assert all(char.isprintable() or char == "\n" for char in told)
    assert not any(line.startswith("forged") for line in told.splitlines())


@pytest.mark.parametrize(("setting", "lines"), [("on", 1), ("off", 0)])
def test_the_access_log_is_off_unless_wanted(setting, lines, monkeypatch):
    # A server of this process may have silenced it.
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)
    out = io.StringIO()
    configure_logging(load_settings({"FEEDPROXY_ACCESS_LOG": setting}), role="web", target=out)
    logging.getLogger("uvicorn.access").info('%s - "GET /x"', "127.0.0.1")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert len(out.getvalue().splitlines()) == lines


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_tells_no_values(form):
    out = io.StringIO()
    configure_logging(load_settings({"FEEDPROXY_LOG_FORMAT": form}), role="web", target=out)

    def fail():
        token = "open" + "sesame"
        raise ValueError(len(token))

    try:
        fail()
    except ValueError:
        get_logger().exception("crashed")
        logging.getLogger("uvicorn.error").exception("crashed")
    assert "ValueError" in out.getvalue()
    assert "opensesame" not in out.getvalue()


SECRETS = {
    "known": 'a "quoted"\\secret-ü',
    "url": "rediss://user:p4ssw0rd-in-a-url@redis.example:6379/0",
    "bearer": "Bearer an-opaque-token-of-somebody",
    "session": "eyJhbGciOi.eyJzdWIiOiJkaWQ.c2lnbmF0dXJl",
}
CLEAR = ("quoted", "p4ssw0rd", "opaque-token", "eyJzdWIi")


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_are_masked_whoever_logs_them(form):
    out = io.StringIO()
    redactor = configure_logging(load_settings({"FEEDPROXY_LOG_FORMAT": form}), role="web", target=out)
    redactor.learn([SECRETS["known"], "short"])
    get_logger().warning("event", **SECRETS, fine="short is no secret")
    for text in SECRETS.values():
        logging.getLogger("a.library").error("it said %s", text)
    told = out.getvalue()
    assert not any(part in told for part in CLEAR), told
    assert told.count("********") >= 2 * len(SECRETS)
    assert "short is no secret" in told
    assert "redis.example:6379" in told
    if form == "json":
        assert all(json.loads(line) for line in told.splitlines())


@pytest.mark.parametrize(
    "text", ['Bearer opaque"quoted', "Bearer opaque\\", "first\nBearer opaque", "\teyJopaque.opaque.opaque"]
)
def test_a_line_is_json_and_tells_no_secret_whatever_stands_beside_it(text):
    out = io.StringIO()
    configure_logging(load_settings({}), role="web", target=out)
    get_logger().info("event", field=text, after="words")
    line = json.loads(out.getvalue())
    assert line["after"] == "words"
    assert "opaque" not in line["field"]


def test_secrets_of_the_settings_are_known_from_the_start():
    out = io.StringIO()
    settings = load_settings(
        {
            "FEEDPROXY_ADMIN_TOKEN": "admin-token-of-this-very-test-1234",
            "FEEDPROXY_REDIS_URL": "redis://:password%20one@h",
            "FEEDPROXY_CACHE_REDIS_URL": "redis+sentinel://:password-two@h/m?sentinel_password=password-three",
        }
    )
    configure_logging(settings, role="web", target=out)
    secrets = ("admin-token-of-this-very-test-1234", "password one", "password-two", "password-three")
    get_logger().warning("event", told=" ".join(secrets))
    assert not any(secret in out.getvalue() for secret in secrets)

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


@pytest.mark.parametrize(("setting", "lines"), [("on", 1), ("off", 0)])
def test_the_access_log_is_off_unless_wanted(setting, lines):
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

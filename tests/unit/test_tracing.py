"""W3C trace context: what is valid goes on, what is not begins anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

from proxy.observing import spans_if_installed
from proxy.tracing import NoSpans, current_trace, trace_of, with_trace, working

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (GIVEN, "01"),
        (f" {GIVEN} ", "01"),
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"cc-{TRACE}-{SPAN}-ff-more", "01"),
    ],
)
def test_what_is_valid_is_understood(header, flags):
    trace = trace_of(header)
    assert (trace.trace_id, trace.span_id, trace.flags, trace.told) == (TRACE, SPAN, flags, True)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "hello",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\x1b[31m",
    ],
)
def test_what_is_not_is_as_if_absent(header):
    assert trace_of(header) is None


def test_work_bears_its_numbers_and_no_longer():
    with working(NoSpans(), "GET", "server", trace_of(GIVEN)) as trace:
        assert current_trace() is trace
        assert (trace.trace_id, trace.flags, trace.told) == (TRACE, "01", True)
        assert trace.span_id != SPAN
        assert with_trace(None, "info", {}) == {"trace_id": TRACE, "request_id": trace.span_id}
    assert current_trace() is None
    assert with_trace(None, "info", {}) == {}


def test_a_trace_of_our_own_is_nobodys_business():
    with working(NoSpans(), "GET", "server", None) as trace:
        assert not trace.told
        assert trace_of(trace.traceparent) is not None


@pytest.mark.parametrize(
    "environ",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}],
)
def test_without_a_collector_there_are_no_spans(environ):
    assert isinstance(spans_if_installed("web", environ), NoSpans)


def test_where_it_is_not_installed_nothing_is_imported_and_all_works():
    """A process to which the packages do not exist."""
    program = """
import importlib.machinery, sys
class Nowhere(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "opentelemetry" else super().find_spec(name, path, target)
sys.meta_path = [Nowhere if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from proxy import runtime, supervisor
from proxy.observing import spans_if_installed
from proxy.tracing import NoSpans
there = spans_if_installed("web", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
assert isinstance(there, NoSpans)
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "opentelemetry_not_installed" in done.stdout + done.stderr

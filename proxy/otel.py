"""Spans for OpenTelemetry. Imported only where its packages are installed and somebody collects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from proxy.tracing import Facts, Kind, Trace
from proxy.version import VERSION

_KINDS: Final[Mapping[Kind, SpanKind]] = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
}


class OtelSpans:
    """See Spans: they are sent to where the variables OTEL_EXPORTER_OTLP_* of OpenTelemetry say."""

    kept = True

    def __init__(self, role: str) -> None:
        resource = Resource.create(
            {"service.name": "feedproxy", "service.version": VERSION, "feedproxy.role": role}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("feedproxy", VERSION)

    @contextmanager
    def part(self, name: str, kind: Kind, parent: Trace | None, facts: Facts) -> Iterator[Trace]:
        """See Spans."""
        context = Context() if parent is None else set_span_in_context(_remote(parent), Context())
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=_KINDS[kind],
            attributes=dict(facts),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            made = span.get_span_context()
            yield Trace(
                trace_id=f"{made.trace_id:032x}",
                span_id=f"{made.span_id:016x}",
                flags=f"{int(made.trace_flags):02x}",
                told=True,
            )

    def close(self) -> None:
        """Send what is left, for a moment."""
        self._provider.force_flush(1000)
        self._provider.shutdown()


def _remote(trace: Trace) -> NonRecordingSpan:
    flags = TraceFlags(int(trace.flags, 16))
    return NonRecordingSpan(
        SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), is_remote=True, trace_flags=flags)
    )

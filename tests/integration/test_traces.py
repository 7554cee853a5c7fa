"""A request can be followed: from who sent it to the upstream, to the log, and to a collector of spans."""

from __future__ import annotations

import asyncio
import gzip

import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from harness.proxy import feed
from harness.upstream import Response, Upstream, json_response
from harness.waiting import until
from integration.processes import ServeProcess
from proxy.tracing import trace_of, with_trace

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


async def test_the_trace_of_a_request_goes_on_to_the_upstream_and_the_log(start, upstream):
    answers = iter([Response(status=502), json_response({"feed": []})])
    upstream.answer = lambda _: next(answers)
    with structlog.testing.capture_logs(processors=[with_trace]) as logs:
        async with start() as proxy:
            assert (await proxy.get(feed(), traceparent=PARENT)).status_code == 200
    told = [trace_of(request.headers["traceparent"]) for request in upstream.requests]
    assert [trace.trace_id for trace in told] == [TRACE, TRACE]
    assert [trace.flags for trace in told] == ["01", "01"]
    assert len({trace.span_id for trace in told} | {"b7ad6b7169203331"}) == 3
    [retry] = [event for event in logs if event["event"] == "upstream_retry"]
    assert retry["trace_id"] == TRACE
    assert len(retry["request_id"]) == 16


async def test_what_has_no_trace_is_known_by_numbers_of_our_own(start, upstream):
    upstream.answer = lambda _: Response(status=502)
    with structlog.testing.capture_logs(processors=[with_trace]) as logs:
        async with start() as proxy:
            await proxy.get(feed("one.test"))
            await proxy.get(feed("two.test"), traceparent="00-garbage")
    assert not any("traceparent" in request.headers for request in upstream.requests)
    retries = [event for event in logs if event["event"] == "upstream_retry"]
    assert len({event["request_id"] for event in retries}) == len({e["trace_id"] for e in retries}) == 2


async def test_a_trace_chooses_no_answer(start, upstream):
    async with start() as proxy:
        first = await proxy.get(feed(), traceparent=PARENT)
        second = await proxy.get(feed(), traceparent=PARENT.replace("b7", "c8"))
    assert upstream.count == 1
    assert first.content == second.content
    assert "hit" in second.headers["cache-status"]


class Collector(Upstream):
    """What OpenTelemetry sends its spans to."""

    def __init__(self) -> None:
        super().__init__()
        self.spans = []

    async def _exchange(self, reader, writer) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if line)
        body = await reader.readexactly(int(fields["content-length"]))
        if fields.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        message = ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        return True


async def test_spans_are_sent_to_a_collector(upstream, tmp_path, monkeypatch):
    async with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with ServeProcess(tmp_path / "data", UPSTREAM=upstream.url) as serve:
            await asyncio.to_thread(serve.wait_ready)
            for actor in ("bob.test", "alice.test"):  # the first finds a store that is just starting
                client = asyncio.to_thread(serve.get, feed(actor))
                assert (await client)[0] == 200
            request = upstream.requests[-1]
            told = trace_of(request.headers["traceparent"])

            def of_the_trace():
                return {s.kind: s for s in collector.spans if s.trace_id.hex() == told.trace_id}

            await until(lambda: len(of_the_trace()) == 2, deadline_s=30)
            spans = of_the_trace()
            server, client = (spans[kind] for kind in sorted(spans))  # SERVER is before CLIENT
            assert (server.name, client.name) == ("GET", "GET")
            assert client.parent_span_id == server.span_id
            assert client.span_id.hex() == told.span_id
            assert server.parent_span_id == b""
            assert server.end_time_unix_nano > client.end_time_unix_nano
            assert await asyncio.to_thread(serve.terminate) == 0
            assert "opentelemetry" not in serve.log_text()

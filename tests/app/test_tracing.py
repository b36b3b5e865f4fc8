"""Traces, as a collector receives them over HTTP."""

import contextlib
import http.server
import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.telemetry.tracing import TracingUnavailable
from tests.app.client import Serve
from tests.app.colours import PHOTO_PNG

pytestmark = pytest.mark.anyio

_TRACE_ID, _PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@contextlib.contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ExportTraceServiceRequest]]:
    """Runs a collector, which OpenTelemetry's environment variables name; yields the requests received."""
    received: list[ExportTraceServiceRequest] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        yield received
        collector.shutdown()
        thread.join()


def list_spans(received: list[ExportTraceServiceRequest]) -> list[Span]:
    resources = [resource for each in received for resource in each.resource_spans]
    return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


def attributes(span: Span) -> dict[str, object]:
    values = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, str(kind))
        values[each.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return values


async def test_each_request_and_stage_has_a_span(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting(monkeypatch) as received:
        async with serve(traces=True) as client:
            traceparent = f"00-{_TRACE_ID}-{_PARENT_ID}-01"
            headers = {"traceparent": traceparent, "x-request-id": "mine"}
            answer = await client.post("/detect", content=PHOTO_PNG, headers=headers)
            assert answer.status_code == 200
            await client.get("/health/ready")
            await client.get("/metrics")
    for each in received:
        [of_resource] = each.resource_spans
        assert "centernet-service" in [a.value.string_value for a in of_resource.resource.attributes]

    spans = list_spans(received)
    assert {span.trace_id.hex() for span in spans} == {_TRACE_ID}
    [request] = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert request.name == "POST /detect"
    assert request.parent_span_id.hex() == _PARENT_ID
    assert attributes(request)["http.response.header.x_request_id"] == ["mine"]

    stages = sorted((span for span in spans if span is not request), key=lambda s: s.start_time_unix_nano)
    assert [span.name for span in stages] == ["read", "queue", "decode", "inference", "encode"]  # on a CPU
    for span in stages:
        assert span.parent_span_id == request.span_id
        assert attributes(span) == {"centernet.model": "colours"}
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano


async def test_images_of_a_batch_have_their_own_stage_spans(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting(monkeypatch) as received:
        async with serve(traces=True) as client:
            files = [("images", (f"{number}.png", PHOTO_PNG)) for number in range(3)]
            assert (await client.post("/detect/batch", files=files)).status_code == 200
    spans = list_spans(received)
    assert sorted(span.name for span in spans) == sorted(
        ["POST /detect/batch", "read", "encode", *["decode", "queue", "inference"] * 3]
    )


async def test_a_collector_that_does_not_respond_does_not_keep_a_server_from_stopping(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.telemetry.tracing._FLUSH_SECONDS", 0.01)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with serve(traces=True) as client:
            await client.detect()
        assert "the collector did not accept the last traces within 0.01 s" in caplog.text


async def test_traces_without_opentelemetry_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingUnavailable, match=r"pip install 'centernet-service\[otel\]'"):
        async with serve(traces=True):
            pass

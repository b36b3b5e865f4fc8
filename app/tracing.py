"""OpenTelemetry traces: a span for each request, as its client's `traceparent` continues, and one for each stage.

Where they go is said by OpenTelemetry's own variables, `OTEL_EXPORTER_OTLP_ENDPOINT` above all.
"""

import asyncio

from fastapi import FastAPI

from app.request_id import HEADER

_SERVICE_NAME = "centernet-service"
_UNTRACED = "/health/,/metrics"  # what machines ask all the time


class TracingUnavailable(Exception):
    """Traces are asked for, and OpenTelemetry is not installed."""


class Traces:
    """What gathers spans and sends them over OTLP: those of requests, and those that are made with `tracer`.

    Raises `TracingUnavailable`.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingUnavailable(f"traces: {error}; pip install 'centernet-service[otel]'") from error
        resource = Resource({"service.name": _SERVICE_NAME}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._instrumentor = FastAPIInstrumentor
        self.tracer = self._provider.get_tracer("centernet")

    def cover(self, app: FastAPI) -> None:
        """Gives each request to `app` a span with its id, but for those of probes and scrapes."""
        self._instrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            excluded_urls=_UNTRACED,
            exclude_spans=["receive", "send"],
            http_capture_headers_server_response=[HEADER],
        )

    async def flush(self) -> None:
        """Sends what is left, and ends."""
        await asyncio.to_thread(self._provider.shutdown)

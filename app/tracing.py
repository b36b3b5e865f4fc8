"""OpenTelemetry traces: a span per request, which continues the client's `traceparent`, and a span per stage.

OpenTelemetry's own environment variables configure the exporter, above all `OTEL_EXPORTER_OTLP_ENDPOINT`.
"""

import asyncio

from fastapi import FastAPI

from app.request_id import HEADER

_SERVICE_NAME = "centernet-service"
_UNTRACED = "/health/,/metrics"  # polled all the time by probes and scrapers


class TracingUnavailable(Exception):
    """Tracing is enabled, but OpenTelemetry is not installed."""


class Tracing:
    """Exports spans over OTLP: those of instrumented apps and those made with `tracer`.

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

    def instrument(self, app: FastAPI) -> None:
        """Gives each request to `app` a span with its request id, except for health probes and metrics scrapes."""
        self._instrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            excluded_urls=_UNTRACED,
            exclude_spans=["receive", "send"],
            http_capture_headers_server_response=[HEADER],
        )

    async def flush(self) -> None:
        """Exports the remaining spans and shuts the exporter down."""
        await asyncio.to_thread(self._provider.shutdown)

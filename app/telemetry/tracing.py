"""OpenTelemetry traces: a span per request, which continues the client's `traceparent`, and a span per stage.

OpenTelemetry's own environment variables configure the exporter, above all `OTEL_EXPORTER_OTLP_ENDPOINT`.
"""

import asyncio
import logging
import threading

from fastapi import FastAPI

from app.telemetry.request_id import HEADER
from model.errors import UserError

_SERVICE_NAME = "centernet-service"
_UNTRACED = "/health/,/metrics"  # polled all the time by probes and scrapers
_FLUSH_SECONDS = 1.0  # with the default `stop_timeout_seconds`, a stop ends before `docker stop` kills

logger = logging.getLogger(__name__)


class TracingUnavailable(UserError):
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
        """Exports the remaining spans and shuts the exporter down; gives up after `_FLUSH_SECONDS`."""
        # the exporter retries for as long as it likes, in a daemon that does not keep the process alive
        exporting = threading.Thread(target=self._provider.shutdown, name="flush-traces", daemon=True)
        exporting.start()
        await asyncio.to_thread(exporting.join, _FLUSH_SECONDS)
        if exporting.is_alive():
            logger.warning("the collector did not accept the last traces within %g s", _FLUSH_SECONDS)

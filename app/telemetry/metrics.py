"""Prometheus metrics, in a registry per app."""

import functools
import time

import prometheus_client as prometheus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry.memory import read_memory_limit

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH = (1, 2, 4, 8, 16, 32, 64)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    """The metrics of one app and of its process."""

    def __init__(self) -> None:
        # they would double the number of series
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        prometheus.PlatformCollector(registry=registry)
        gauge = functools.partial(prometheus.Gauge, registry=registry)
        counter = functools.partial(prometheus.Counter, registry=registry)
        histogram = functools.partial(prometheus.Histogram, registry=registry)
        if limit := read_memory_limit():
            gauge("centernet_memory_limit_bytes", "Memory limit of the container.").set(limit)
        self.requests = counter("centernet_requests", "Responses sent.", ["route", "method", "status"])
        self.request_seconds = histogram(
            "centernet_request_seconds", "Time from request to response.", ["route"], buckets=_SECONDS
        )
        self.stage_seconds = histogram(
            "centernet_stage_seconds",
            "Time that each stage of a detection takes.",
            ["model", "stage"],
            buckets=_SECONDS,
        )
        self.batch_size = histogram("centernet_batch_size", "Images per inference batch.", ["model"], buckets=_BATCH)
        self.queue_depth = gauge("centernet_queue_depth", "Images waiting for a decoder or for inference.", ["model"])
        self.in_flight = gauge("centernet_requests_in_flight", "Images being decoded, queued or computed.", ["model"])
        self.connections = gauge("centernet_connections", "Open connections.")
        self.body_bytes = gauge("centernet_body_bytes", "Bytes of request bodies in memory.")
        self.abandoned = counter(
            "centernet_abandoned", "Images dropped from the queue because their request ended.", ["model"]
        )
        self.detections = counter("centernet_detections", "Objects detected and returned.", ["model", "label"])
        self.rejections = counter("centernet_rejections", "Requests that were rejected or failed.", ["reason"])
        self.ready = gauge(
            "centernet_model_ready",
            "1 if the model can compute, 0 while it warms up and after repeated failures.",
            ["model"],
        )
        self.refused = gauge("centernet_models_refused", "Model files that could not be loaded.")
        self.model = prometheus.Info("centernet_model", "Facts about a served model.", ["model"], registry=registry)
        for metric in (self.requests, self.request_seconds, self.stage_seconds, self.detections, self.rejections):
            # each request updates a dozen series, and the lookup takes longer than the update
            metric.labels = functools.cache(metric.labels)  # type: ignore[method-assign, assignment]

    def expose(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts and times responses; `BaseHTTPMiddleware` would hide client disconnects."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request and records its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # if the connection broke before a response started

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        finally:
            # unknown paths and methods share one label each, so that clients cannot create series
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

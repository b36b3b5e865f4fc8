"""What Prometheus may ask, kept in a registry that belongs to one app."""

import functools
import time

import prometheus_client as prometheus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.memory import read_memory_limit

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH = (1, 2, 4, 8, 16, 32, 64)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    """Counters, histograms and gauges of one app, and those of its process."""

    def __init__(self) -> None:
        # a second series for each one, of no use
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        prometheus.PlatformCollector(registry=registry)
        if limit := read_memory_limit():
            prometheus.Gauge(
                "centernet_memory_limit_bytes", "Most memory that the container may use.", registry=registry
            ).set(limit)
        self.requests = prometheus.Counter(
            "centernet_requests", "Answers sent.", ["route", "method", "status"], registry=registry
        )
        self.request_seconds = prometheus.Histogram(
            "centernet_request_seconds", "From request to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.stage_seconds = prometheus.Histogram(
            "centernet_stage_seconds",
            "The parts of a detection.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = prometheus.Histogram(
            "centernet_batch_size", "Images in one inference.", ["model"], buckets=_BATCH, registry=registry
        )
        self.queue_depth = prometheus.Gauge(
            "centernet_queue_depth", "Images that wait for the next inference.", ["model"], registry=registry
        )
        self.in_flight = prometheus.Gauge(
            "centernet_requests_in_flight",
            "Images being decoded, queued or computed.",
            ["model"],
            registry=registry,
        )
        self.connections = prometheus.Gauge("centernet_connections", "Open connections.", registry=registry)
        self.body_bytes = prometheus.Gauge(
            "centernet_body_bytes", "Bytes of request bodies in memory.", registry=registry
        )
        self.abandoned = prometheus.Counter(
            "centernet_abandoned", "Images whose request ended in the queue.", ["model"], registry=registry
        )
        self.detections = prometheus.Counter(
            "centernet_detections", "Objects found and sent.", ["model", "label"], registry=registry
        )
        self.rejections = prometheus.Counter(
            "centernet_rejections", "Requests refused or failed.", ["reason"], registry=registry
        )
        self.ready = prometheus.Gauge(
            "centernet_model_ready",
            "1 where pictures are computed, 0 where not yet or no more.",
            ["model"],
            registry=registry,
        )
        self.refused = prometheus.Gauge(
            "centernet_models_refused", "Model files that could not be loaded.", registry=registry
        )
        self.model = prometheus.Info("centernet_model", "What is served.", ["model"], registry=registry)
        for metric in (self.requests, self.request_seconds, self.stage_seconds, self.detections, self.rejections):
            # each request needs a dozen series: to look one up takes longer than to change it
            metric.labels = functools.cache(metric.labels)  # type: ignore[method-assign, assignment]

    def expose(self) -> bytes:
        """Returns everything in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts answers and times them; an ASGI one so as not to hide the client's disconnect."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, and notes its status as it passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # where the connection broke

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            # neither paths nor methods that a client made up: each would be a series of its own
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

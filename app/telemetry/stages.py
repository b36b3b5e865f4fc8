"""Durations of a detection's stages: as Prometheus metrics, and as spans if there is a tracer."""

import time
from typing import TYPE_CHECKING

from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer  # an optional dependency


class Stages:
    """Records how long each stage of a request took: read (the body), decode, queue, inference, encode."""

    def __init__(self, metrics: Metrics, tracer: "Tracer | None" = None) -> None:
        self._seconds = metrics.stage_seconds
        self._tracer = tracer

    def record(self, model: str, stage: str, started: float, ended: float) -> None:
        """Records one stage; `started` and `ended` are times of `time.perf_counter`."""
        self._seconds.labels(model, stage).observe(ended - started)
        if self._tracer:
            since_epoch = time.time() - time.perf_counter()
            span = self._tracer.start_span(
                stage, start_time=_nanoseconds(since_epoch + started), attributes={"centernet.model": model}
            )
            span.end(_nanoseconds(since_epoch + ended))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)

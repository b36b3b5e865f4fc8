"""The way of a request: bytes → image → letterbox → batch → boxes → JSON."""

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from app.answers import Answer, UnknownLabel, encode_answer
from app.body import read_image
from app.disconnect import cancelled_on_disconnect
from app.errors import document
from app.service import Service
from model.detector import Detections

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image: JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF. Its bytes tell the format, "
        "so that a raw body may have any content type or none; a form holds one file of any name.",
        "content": {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": _BINARY["schema"]}, "required": ["image"]}
            },
        },
    }
}


def build_detection_router(service: Service) -> APIRouter:
    """Returns `POST /detect` over `service`."""
    settings, detector, metrics = service.settings, service.detector, service.metrics
    metadata, most = detector.metadata, detector.most_detections
    indices = {label: index for index, label in enumerate(metadata.labels)}
    router = APIRouter()

    @router.post(
        "/detect",
        summary="Find objects in a picture",
        response_model=Answer,
        response_description="What was found, in the picture's own pixels, the surest first",
        responses=document(400, 408, 413, 415, 422, 500, 503),
        openapi_extra=_BODY,
    )
    async def detect(
        request: Request,
        threshold: Annotated[
            float, Query(ge=0, le=1, allow_inf_nan=False, description="least score")
        ] = settings.threshold,
        limit: Annotated[int, Query(ge=1, le=most, description="most detections")] = min(settings.limit, most),
        labels: Annotated[
            str | None, Query(description="only these, separated by commas", examples=[metadata.labels[0]])
        ] = None,
    ) -> Response:
        started = time.perf_counter()
        wanted = _find_labels(labels, indices)
        with service.batcher.admit() as submit:
            data = await read_image(request, settings.max_image_bytes, settings.body_timeout_seconds)
            read = time.perf_counter()
            async with cancelled_on_disconnect(request):
                prepared = await asyncio.get_running_loop().run_in_executor(
                    service.decoders, detector.prepare, data, settings.max_pixels
                )
                decoded = time.perf_counter()
                served = await submit(prepared.pixels)
        computed = time.perf_counter()
        found = detector.finish(_select(served.result, threshold, limit, wanted), prepared.letterbox)
        timings = {
            "decode": decoded - read,
            "queue": served.queue_seconds,
            "inference": served.inference_seconds,
            "total": time.perf_counter() - started,
        }
        content = encode_answer(metadata, prepared.letterbox, found, timings)

        stages = timings | {"read": read - started, "encode": time.perf_counter() - computed}
        for stage in ("read", "decode", "queue", "inference", "encode"):
            metrics.stage_seconds.labels(stage).observe(stages[stage])
        for index in found.labels.tolist():
            metrics.detections.labels(metadata.labels[index]).inc()
        return Response(content, media_type="application/json")

    return router


def _find_labels(labels: str | None, indices: Mapping[str, int]) -> list[int] | None:
    """Returns the class indices of a list of labels, None for all; raises `UnknownLabel`."""
    if labels is None:
        return None
    names = [name.strip() for name in labels.split(",")]
    unknown = [name for name in names if name not in indices]
    if unknown:
        raise UnknownLabel(f"unknown: {', '.join(map(repr, unknown))}; the model knows: {', '.join(indices)}")
    return [indices[name] for name in names]


def _select(found: Detections, threshold: float, limit: int, wanted: list[int] | None) -> Detections:
    keep = found.scores >= threshold
    if wanted is not None:
        keep &= np.isin(found.labels, wanted)
    keep &= np.cumsum(keep) <= limit
    return found.select(keep)

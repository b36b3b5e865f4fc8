"""`POST /detect` and `POST /detect/batch`: images in, detections as JSON or drawn into the image out."""

import asyncio
import dataclasses
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from app.answers import encode_answer, encode_answers
from app.errors import build_problem, document_problems
from app.inference.admission import Arrival
from app.inference.served_model import ServedModel
from app.pipeline import DetectionResult, Filter, admit, build_filter, expect, find_objects, find_objects_in_each
from app.requests.accept import choose_media_type
from app.requests.body import read_image, read_images
from app.requests.parameters import document_parameters
from app.schemas import Answer, Answers
from app.service import Service
from model.draw import draw_file

_JSON, _JPEG, _PNG = _MEDIA_TYPES = ("application/json", "image/jpeg", "image/png")
_BINARY = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image: JPEG, PNG, WebP, BMP, GIF or TIFF. The format is detected from its bytes, "
        "so a raw body may have any content type or none; a form must contain one file, of any name.",
        "content": {
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": _BINARY}, "required": ["image"]}
            },
        },
    }
}
_BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Several images, as files of a form with any names, or as base64 in JSON.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _BINARY}}}
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
                    "required": ["images"],
                },
                "example": {"images": ["/9j/4AAQSkZJRg…", "iVBORw0KGgo…"]},
            },
        },
    }
}


@dataclasses.dataclass(frozen=True)
class DetectionRequest:
    """The parsed parameters of a request."""

    model: ServedModel
    filter: Filter
    timeout_seconds: float
    arrival: Arrival | None  # if the connection has announced the request


def build_detection_router(service: Service) -> APIRouter:
    """Returns the detection routes."""
    settings, metrics = service.settings, service.metrics
    documented = document_parameters(settings, service.models.get().detector.metadata.labels[0])
    router = APIRouter()

    def read_request(request: Request) -> DetectionRequest:
        parameters = service.read_parameters(request.scope["query_string"], request.headers)
        model = service.models.get(parameters.model)
        metadata, threshold = model.detector.metadata, parameters.threshold
        wanted = build_filter(settings, metadata, threshold, parameters.limit, parameters.labels)
        return DetectionRequest(model, wanted, parameters.timeout, getattr(request.state, "arrival", None))

    @router.post(
        "/detect",
        summary="Detect objects in an image",
        response_model=Answer,
        description="Returns the detections as JSON; or, if the `Accept` header prefers `image/jpeg` or `image/png`, "
        "the upright image at full size with the detections drawn.",
        responses=document_problems(400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)
        | {
            200: {
                "description": "The detections, in pixels of the original image, sorted by descending score",
                "content": {_JPEG: {"schema": _BINARY}, _PNG: {"schema": _BINARY}},
            }
        },
        openapi_extra=_BODY | documented,
    )
    async def detect(request: Request) -> Response:
        started = time.perf_counter()
        wanted = read_request(request)
        model, metadata = wanted.model, wanted.model.detector.metadata
        media_type = choose_media_type(",".join(request.headers.getlist("accept")), _MEDIA_TYPES)
        with expect(model, wanted.timeout_seconds, wanted.arrival) as arrival:
            data = await read_image(request, settings)
            read = time.perf_counter()
            with admit(service, model, request, wanted.timeout_seconds, arrival=arrival):
                found = await find_objects(service, model, data, wanted.filter)
                computed = time.perf_counter()
                if media_type == _JSON:
                    content = encode_answer(metadata, found, computed - started)
                else:
                    kind = media_type.removeprefix("image/")
                    drawing = (data, found.detections, metadata.labels, kind, settings.max_pixels, metadata.skeleton)
                    content = await asyncio.get_running_loop().run_in_executor(service.decoders, draw_file, *drawing)

        service.stages.record(model.name, "read", started, read)
        service.stages.record(model.name, "encode", computed, time.perf_counter())
        return Response(content, media_type=media_type, headers={"vary": "accept"})

    @router.post(
        "/detect/batch",
        summary="Detect objects in several images",
        response_model=Answers,
        response_description="For each image, in order, a result as from `/detect`, or the problem with this image",
        responses=document_problems(400, 401, 404, 408, 413, 422, 429, 500, 503, 504),
        openapi_extra=_BATCH_BODY | documented,
    )
    async def detect_batch(request: Request) -> Response:
        started = time.perf_counter()
        wanted = read_request(request)
        model, metadata = wanted.model, wanted.model.detector.metadata
        with expect(model, wanted.timeout_seconds, wanted.arrival) as arrival:
            files = await read_images(request, settings)
            read = time.perf_counter()
            with admit(service, model, request, wanted.timeout_seconds, len(files), arrival):
                results = await find_objects_in_each(service, model, files, wanted.filter)
        computed = time.perf_counter()
        content = encode_answers(
            [
                encode_answer(metadata, result, computed - started)
                if isinstance(result, DetectionResult)
                else build_problem(result, metrics).model_dump_json().encode()
                for result in results
            ]
        )

        service.stages.record(model.name, "read", started, read)
        service.stages.record(model.name, "encode", computed, time.perf_counter())
        return Response(content, media_type="application/json")

    return router

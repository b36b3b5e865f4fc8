"""The API of DeepStack, CodeProject.AI and blue-onyx, for camera software that uses it."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from pydantic_core import to_json

from app.errors import document_problems
from app.pipeline import DetectionResult, admit, build_filter, find_objects
from app.requests.body import EmptyBody, read_parts
from app.requests.deadline import answered_within
from app.requests.form import InvalidForm, Part, find_text
from app.requests.parameters import Parameters, build_parameters_reader, document_parameters, refuse_model
from app.schemas import Problem
from app.service import Service

PATH = "/v1/"
_DESCRIPTION = (
    "Boxes are in pixels of the upright image, rotated as its EXIF orientation says. Software that sends its own form "
    "can set parameters in the URL's query; the form's `min_confidence` takes precedence over `threshold`."
)
_BINARY = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": _BINARY | {"description": "with or without a file name and content type"},
                        "min_confidence": {"type": "number", "minimum": 0, "maximum": 1},
                        "api_key": {"type": "string", "description": "for servers that require a key"},
                    },
                    "required": ["image"],
                }
            },
            "image/*": {"schema": _BINARY},
        },
    }
}


class Prediction(BaseModel):
    """One detected object, with its box in whole pixels."""

    label: str = Field(examples=["dog"])
    confidence: float = Field(ge=0, le=1, examples=[0.9123])
    x_min: int = Field(examples=[131])
    y_min: int = Field(examples=[220])
    x_max: int = Field(examples=[310])
    y_max: int = Field(examples=[467])


class Predictions(BaseModel):
    """The detections, sorted by descending score."""

    success: bool
    code: int = Field(examples=[200])
    count: int = Field(examples=[1])
    predictions: list[Prediction]
    inferenceMs: int = Field(examples=[21])  # noqa: N815  # the API's own name
    processMs: int = Field(examples=[26])  # noqa: N815


class CustomModels(BaseModel):
    """The model names for `/v1/vision/custom/{model}`."""

    success: bool
    code: int = Field(examples=[200])
    models: list[str] = Field(examples=[["resnet18-coco-512"]])


def format_problem(problem: Problem) -> Mapping[str, Any]:
    """Returns a problem as an error response of this API."""
    error = f"{problem.title}: {problem.detail}"
    return {"success": False, "code": problem.status, "error": error, "count": 0, "predictions": []}


def build_deepstack_router(service: Service) -> APIRouter:
    """Returns the routes of this API."""
    settings = service.settings.model_copy(update={"limit": service.settings.deepstack_limit})
    read_parameters = build_parameters_reader(settings)
    label = service.models.get().detector.metadata.labels[0]
    router = APIRouter(tags=["DeepStack, CodeProject.AI"])
    problems = document_problems(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504, format_problem=format_problem)

    def read_query(request: Request) -> Parameters:
        parts: list[bytes] = request.scope["query_string"].split(b"&")
        return read_parameters(b"&".join(part for part in parts if _is_parameter(part)), request.headers)

    async def find(request: Request, parameters: Parameters, name: str | None) -> Response:
        started = time.perf_counter()
        with answered_within(parameters.timeout):
            parts = await read_parts(request, settings.max_image_bytes, settings)
            await service.access.authenticate(request, parts)
            model = service.models.get(name)
            data, min_confidence = _find_image(parts), _find_min_confidence(parts)
            threshold = parameters.threshold if min_confidence is None else min_confidence
            wanted = build_filter(settings, model.detector.metadata, threshold, parameters.limit, parameters.labels)
            read = time.perf_counter()
            with admit(service, model, request, parameters.timeout):
                found = await find_objects(service, model, data, wanted)
        computed = time.perf_counter()
        content = _encode(found, model.detector.metadata.labels, computed - started)

        service.stages.record(model.name, "read", started, read)
        service.stages.record(model.name, "encode", computed, time.perf_counter())
        return Response(content, media_type="application/json")

    @router.post(
        "/v1/vision/detection",
        summary="Detect objects in an image",
        description=_DESCRIPTION,
        response_model=Predictions,
        responses=problems,
        openapi_extra=_BODY | document_parameters(settings, label),
    )
    async def detect(request: Request) -> Response:
        parameters = read_query(request)
        return await find(request, parameters, parameters.model)

    @router.post("/v1/vision/custom/list", summary="List the served models")
    async def list_models(request: Request) -> CustomModels:
        await service.access.authenticate(request, await read_parts(request, settings.max_image_bytes, settings))
        return CustomModels(success=True, code=200, models=[model.name for model in service.models])

    @router.post(
        "/v1/vision/custom/{model}",
        summary="Detect objects in an image with the named model",
        description=_DESCRIPTION,
        response_model=Predictions,
        responses=problems,
        openapi_extra=_BODY | document_parameters(settings, label, model_in_path=True),
    )
    async def detect_with(request: Request, model: str) -> Response:
        parameters = read_query(request)
        refuse_model(parameters)
        return await find(request, parameters, model)

    return router


def _is_parameter(part: bytes) -> bool:
    """Whether a part of the query sets anything: health checks written for other servers send `?healthcheck`."""
    name, _, value = part.partition(b"=")
    return bool(value) or name.decode("latin-1") in Parameters.model_fields


def _find_image(parts: Sequence[Part]) -> bytes:
    images = [part.data for part in parts if part.is_file or part.name == "image"]
    if len(images) != 1:
        raise InvalidForm(f"the form holds {len(images) or 'no'} images: send one, as the part `image`")
    if not images[0]:
        raise EmptyBody("the part `image` is empty")
    return images[0]


def _find_min_confidence(parts: Sequence[Part]) -> float | None:
    text = find_text(parts, "min_confidence")
    if not text:
        return None
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise InvalidForm("min_confidence is not a number from 0 to 1")
    return threshold


def _encode(found: DetectionResult, labels: Sequence[str], seconds: float) -> bytes:
    rows = found.detections
    predictions = [
        {"label": labels[index], "confidence": round(score, 4), "x_min": x1, "y_min": y1, "x_max": x2, "y_max": y2}
        for (x1, y1, x2, y2), score, index in zip(
            rows.boxes_xyxy.round().astype(int).tolist(), rows.scores.tolist(), rows.labels.tolist(), strict=True
        )
    ]
    return to_json(
        {
            "success": True,
            "code": 200,
            "count": len(predictions),
            "predictions": predictions,
            "inferenceMs": round(found.inference_seconds * 1000),
            "processMs": round(seconds * 1000),
        }
    )

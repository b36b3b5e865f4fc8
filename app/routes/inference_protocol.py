"""The Open Inference Protocol v2, as implemented by Triton, KServe and OpenVINO Model Server."""

import asyncio
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app import __version__
from app.errors import document_problems
from app.pipeline import DetectionResult, admit, build_filter, expect, find_objects_in_each
from app.requests.body import read_body
from app.requests.parameters import document_parameters, refuse_model
from app.routes.tensors import TensorDescription, describe_outputs, read_inference, write_inference
from app.schemas import Problem
from app.service import Service

PATH = "/v2"
_TAGS: list[str | Enum] = ["Open Inference Protocol"]
_HEADER_LENGTH = "inference-header-content-length"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One input tensor: either `image`, BYTES of shape [n] or [n, 1], with image files, "
        "base64-encoded if in the JSON; or `pixels`, UINT8 of shape [n, height, width, 3], RGB of any size. With the "
        "binary tensor extension the tensor follows the JSON, whose length is in the header "
        "`Inference-Header-Content-Length`.",
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"]},
                "example": {
                    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["/9j/4AAQSkZJRg…"]}],
                    "parameters": {"threshold": 0.5, "limit": 10},
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class ServerDescription(BaseModel):
    """The server's name, version and protocol extensions."""

    name: str = Field(examples=["centernet-service"])
    version: str
    extensions: list[str] = Field(examples=[["binary_tensor_data"]])


class TensorModel(BaseModel):
    """A model's tensors. The inputs are alternatives: a request has one of them."""

    name: str = Field(examples=["resnet18-coco-512"])
    versions: list[str]
    platform: str = Field(examples=["onnxruntime_onnx"])
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


def format_problem(problem: Problem) -> Mapping[str, Any]:
    """Returns a problem as an error response of this protocol."""
    return {"error": f"{problem.title}: {problem.detail}"}


def build_probe_router(service: Service) -> APIRouter:
    """Returns the health probes, which need no API key."""
    router = APIRouter(tags=_TAGS)
    not_ready = document_problems(503, format_problem=format_problem)

    @router.get("/v2/health/live", summary="Liveness: restart the process if it fails", responses=not_ready)
    async def live() -> dict[str, bool]:
        service.check_live()
        return {"live": True}

    @router.get("/v2/health/ready", summary="Readiness: are the models warmed up and working?", responses=not_ready)
    async def ready() -> dict[str, bool]:
        await service.check_ready()
        return {"ready": True}

    return router


def build_inference_router(service: Service) -> APIRouter:
    """Returns the protocol's other routes, which need an API key if any is set."""
    settings = service.settings
    router = APIRouter(tags=_TAGS)
    not_ready = document_problems(503, format_problem=format_problem)
    unknown = document_problems(404, format_problem=format_problem)

    @router.get("/v2", summary="Describe the server")
    async def describe_server() -> ServerDescription:
        return ServerDescription(name="centernet-service", version=__version__, extensions=["binary_tensor_data"])

    @router.get("/v2/models/{model}", summary="Describe the model's input and output tensors", responses=unknown)
    async def describe_model(model: str) -> TensorModel:
        metadata = service.models.get(model).detector.metadata
        return TensorModel(
            name=metadata.name,
            versions=[],
            platform="onnxruntime_onnx",
            inputs=[
                TensorDescription(name="image", datatype="BYTES", shape=[-1]),
                TensorDescription(name="pixels", datatype="UINT8", shape=[-1, -1, -1, 3]),
            ],
            outputs=list(describe_outputs(metadata).values()),
        )

    @router.get("/v2/models/{model}/ready", summary="Readiness of one model", responses=unknown | not_ready)
    async def model_ready(model: str) -> dict[str, Any]:
        await service.models.get(model).check_ready()
        return {"name": model, "ready": True}

    @router.post(
        "/v2/models/{model}/infer",
        summary="Detect objects in images",
        description="The parameters `threshold`, `limit` and `labels` of the JSON take precedence over those of the "
        "query. Parameters of other servers are accepted and have no effect; among them is Triton's `timeout`, in "
        "microseconds: use `timeout` in the query, in seconds.",
        response_description="`boxes` in pixels of each original image, `scores`, `labels` (each a `label_id` of "
        "`/models`) and `names`, sorted by descending score; `keypoints` (x, y, score) if the model has them",
        responses=document_problems(
            400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504, format_problem=format_problem
        ),
        response_class=Response,
        openapi_extra=_BODY
        | document_parameters(settings, service.models.get().detector.metadata.labels[0], model_in_path=True),
    )
    async def infer(request: Request, model: str) -> Response:
        started = time.perf_counter()
        parameters = service.read_parameters(request.scope["query_string"], request.headers)
        refuse_model(parameters)
        served = service.models.get(model)
        metadata = served.detector.metadata
        loop = asyncio.get_running_loop()
        with expect(served, parameters.timeout) as arrival:
            body = await read_body(request, settings.max_request_bytes, settings)
            inference, images = await loop.run_in_executor(
                service.decoders, read_inference, body, request.headers.get(_HEADER_LENGTH), metadata, settings
            )
            read = time.perf_counter()
            in_json = inference.parameters.model_dump(include={"threshold", "limit", "labels"}, exclude_none=True)
            parameters = parameters.model_copy(update=in_json)
            wanted = build_filter(settings, metadata, parameters.threshold, parameters.limit, parameters.labels)
            with admit(service, served, request, parameters.timeout, len(images), arrival):
                results = await find_objects_in_each(service, served, images, wanted)
        computed = time.perf_counter()
        found: list[DetectionResult] = []
        for result in results:
            if isinstance(result, Exception):  # a tensor cannot carry the error of one image
                raise result
            found.append(result)
        content, json_length = write_inference(inference, found, metadata)

        service.stages.record(served.name, "read", started, read)
        service.stages.record(served.name, "encode", computed, time.perf_counter())
        if json_length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={_HEADER_LENGTH: str(json_length)}, media_type="application/octet-stream")

    return router

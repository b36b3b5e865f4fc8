"""Builds the app: its routes, what answers its errors, and what runs behind it."""

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator

import cv2
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app import __version__, deepstack, inference_protocol
from app.answers import Health, Models, describe_model
from app.deepstack import build_deepstack_router
from app.detection import build_detection_router
from app.errors import answer_errors, document
from app.inference_protocol import build_inference_router
from app.metrics import CountRequests
from app.service import build_service
from app.settings import Settings
from model.detector import Detector


def create_app(settings: Settings, detector: Detector) -> FastAPI:
    """Returns the server of one model; nothing runs before its lifespan begins."""
    cv2.setNumThreads(1)  # the pool decodes in parallel already
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # broken images are answered, not logged
    warnings.filterwarnings("ignore", module=r"PIL\.")
    service = build_service(settings, detector)
    description = describe_model(detector.metadata, detector.provider)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        yield
        service.batcher.close()
        await running
        service.decoders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="CenterNet service",
        version=__version__,
        summary="Object detection: send a picture, get boxes.",
        lifespan=lifespan,
    )
    app.add_middleware(CountRequests, metrics=service.metrics)
    app.include_router(build_detection_router(service))
    app.include_router(build_deepstack_router(service))
    app.include_router(build_inference_router(service))
    shapes = {deepstack.PATH: deepstack.shape_problem, inference_protocol.PATH: inference_protocol.shape_problem}
    answer_errors(app, service.metrics, shapes)

    @app.get("/health/live", summary="Is the process worth keeping?", responses=document(503))
    async def live() -> Health:
        service.check_live()
        return Health(status="live")

    @app.get("/health/ready", summary="Is the model warmed up?", responses=document(503))
    async def ready() -> Health:
        service.check_ready()
        return Health(status="ready")

    @app.get("/models", summary="What is served")
    async def models() -> Models:
        return Models(models=[description])

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    return app

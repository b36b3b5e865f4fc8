"""Builds the app: routes, error handlers, middleware and lifespan."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.errors import add_error_handlers
from app.fast_path import FastPath
from app.head_method import HeadAsGet
from app.inference.reloading import reloading
from app.requests.body import LimitBodyMemory
from app.routes import deepstack, inference_protocol
from app.routes.admin import Admin, LocalAdmin, build_admin_router
from app.routes.deepstack import build_deepstack_router
from app.routes.detection import build_detection_router
from app.routes.health import build_health_router
from app.routes.inference_protocol import build_inference_router, build_probe_router
from app.routes.models import build_models_router
from app.routes.page import build_page_router
from app.service import Service, build_service
from app.settings import Settings
from app.telemetry.metrics import CountRequests, Metrics
from app.telemetry.request_id import AddRequestIds
from app.telemetry.tracing import Tracing
from model.detector import Detector
from model.image import quieten_decoders

# FastAPI's own telemetry looks up tracers at each request, for a tenth of the event loop's time; `tracing` replaces it
_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}


def create_app(settings: Settings, *detectors: Detector, admin: Admin | None = None) -> FastAPI:
    """Returns the app that serves these models; nothing runs before its lifespan begins. Raises `TracingUnavailable`.

    `admin` is given where several processes serve together; by default the admin routes act on this process alone.
    """
    quieten_decoders()
    traces = Tracing() if settings.traces else None
    service = build_service(settings, detectors, traces.tracer if traces else None)
    metrics, access = service.metrics, service.access

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running(), reloading(service.models, settings):
            yield
        if traces:
            await traces.flush()

    app = FastAPI(
        title="CenterNet service",
        version=__version__,
        summary="Object detection: send an image, get boxes.",
        lifespan=lifespan,
        telemetry=_NO_TELEMETRY,
    )
    detection = build_detection_router(service)
    app.include_router(detection, dependencies=access.guards)
    app.include_router(build_deepstack_router(service), dependencies=access.form_guards)
    app.include_router(build_probe_router(service))
    app.include_router(build_inference_router(service), dependencies=access.guards)
    admin_router = build_admin_router(admin or LocalAdmin(service))
    if settings.metrics_port is None:
        app.include_router(admin_router, dependencies=access.guards)
    else:
        app.state.admin = _build_admin_app(service, admin_router)
    app.include_router(build_models_router(service), dependencies=access.guards)
    app.include_router(build_health_router(service))
    app.include_router(build_page_router())
    formats = {deepstack.PATH: deepstack.format_problem, inference_protocol.PATH: inference_protocol.format_problem}
    app.state.service = service  # for the listener, and for Ray's replicas
    routes = [route for route in detection.routes if isinstance(route, APIRoute)]
    app.state.image_paths = {route.path for route in routes}
    if not access.guards:
        app.add_middleware(FastPath, routes=routes)
    app.add_middleware(LimitBodyMemory, max_bytes=settings.max_held_bytes, metrics=metrics)
    add_error_handlers(app, metrics, formats)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    _add_outer_middleware(app, metrics)

    if traces:
        traces.instrument(app)

    return app


def _build_admin_app(service: Service, router: APIRouter) -> FastAPI:
    app = FastAPI(title="CenterNet service: administration", version=__version__, telemetry=_NO_TELEMETRY)
    app.state.service = service
    app.state.image_paths = set()
    app.include_router(router)
    app.include_router(build_health_router(service))  # reachable here even when client connections are exhausted
    add_error_handlers(app, service.metrics, {})
    _add_outer_middleware(app, service.metrics)
    return app


def _add_outer_middleware(app: FastAPI, metrics: Metrics) -> None:
    """Adds the middleware that wraps all other middleware."""
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(AddRequestIds)
    app.add_middleware(HeadAsGet)

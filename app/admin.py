"""The routes for who runs the server: its figures, and what changes it."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.answers import ModelList, list_models
from app.service import Service


def build_admin_router(service: Service) -> APIRouter:
    """Returns the routes over `service`."""
    router = APIRouter()

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def show_metrics() -> Response:
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/models/reload", summary="Load what has changed, let go what is gone")
    async def reload() -> ModelList:
        await service.models.reload()
        return list_models(service.models)

    return router

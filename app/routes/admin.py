"""The routes for operators: metrics and reloading models."""

from typing import Protocol

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.answers import list_models
from app.schemas import ModelList
from app.service import Service


class Admin(Protocol):
    """The operations behind the routes, on this process or on all processes that serve together."""

    async def expose(self) -> bytes:
        """Returns the metrics in Prometheus' text format."""

    async def reload(self) -> ModelList:
        """Loads new and changed models, unloads removed ones, and returns those now served."""


class LocalAdmin:
    """Operates on this process."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def expose(self) -> bytes:
        """Returns the metrics of this process."""
        return self._service.metrics.expose()

    async def reload(self) -> ModelList:
        """Reloads the models of this process."""
        await self._service.models.reload()
        return list_models(self._service.models)


def build_admin_router(admin: Admin) -> APIRouter:
    """Returns the operators' routes."""
    router = APIRouter()

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def show_metrics() -> Response:
        return Response(await admin.expose(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/models/reload", summary="Load new and changed models, unload removed ones")
    async def reload() -> ModelList:
        return await admin.reload()

    return router

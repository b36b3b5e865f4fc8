"""The routes for who runs the server: its figures, and what changes it."""

from typing import Protocol

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.answers import list_models
from app.schemas import ModelList
from app.service import Service


class Admin(Protocol):
    """What those routes ask for: of this process, or of all that serve the same."""

    async def expose(self) -> bytes:
        """Returns the figures in Prometheus' text format."""

    async def reload(self) -> ModelList:
        """Loads what has changed, and returns what is served now."""


class LocalAdmin:
    """Asks this process."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def expose(self) -> bytes:
        """Returns its figures."""
        return self._service.metrics.expose()

    async def reload(self) -> ModelList:
        """Loads what has changed."""
        await self._service.models.reload()
        return list_models(self._service.models)


def build_admin_router(admin: Admin) -> APIRouter:
    """Returns the routes over `admin`."""
    router = APIRouter()

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def show_metrics() -> Response:
        return Response(await admin.expose(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/models/reload", summary="Load what has changed, let go what is gone")
    async def reload() -> ModelList:
        return await admin.reload()

    return router

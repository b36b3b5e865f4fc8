"""The health probes for orchestrators, which need no API key."""

from fastapi import APIRouter

from app.errors import document_problems
from app.schemas import Health
from app.service import Service


def build_health_router(service: Service) -> APIRouter:
    """Returns the liveness and readiness routes."""
    router = APIRouter()

    @router.get("/health/live", summary="Liveness: restart the process if it fails", responses=document_problems(503))
    async def live() -> Health:
        service.check_live()
        return Health(status="live")

    @router.get(
        "/health/ready", summary="Readiness: are the models warmed up and working?", responses=document_problems(503)
    )
    async def ready() -> Health:
        await service.check_ready()
        return Health(status="ready")

    return router

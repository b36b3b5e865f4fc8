"""The routes that orchestrators ask; they need no key."""

from fastapi import APIRouter

from app.errors import document_problems
from app.schemas import Health
from app.service import Service


def build_health_router(service: Service) -> APIRouter:
    """Returns the routes over `service`."""
    router = APIRouter()

    @router.get("/health/live", summary="Is the process worth keeping?", responses=document_problems(503))
    async def live() -> Health:
        service.check_live()
        return Health(status="live")

    @router.get("/health/ready", summary="Is the model warmed up?", responses=document_problems(503))
    async def ready() -> Health:
        await service.check_ready()
        return Health(status="ready")

    return router

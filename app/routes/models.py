"""The routes that describe the served models."""

from fastapi import APIRouter

from app.answers import describe_model, list_models
from app.errors import document_problems
from app.schemas import ModelDescription, ModelList
from app.service import Service


def build_models_router(service: Service) -> APIRouter:
    """Returns the routes for model descriptions."""
    router = APIRouter()

    @router.get("/models", summary="List the served models")
    async def show_models() -> ModelList:
        return list_models(service.models)

    @router.get("/models/{name}", summary="Describe one model", responses=document_problems(404))
    async def show_model(name: str) -> ModelDescription:
        return describe_model(service.models.get(name))

    return router

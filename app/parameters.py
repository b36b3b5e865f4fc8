"""What a request for detections may ask for, read in one go: FastAPI's own way costs as much as all else it does."""

import functools
from collections.abc import Callable
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import Headers, QueryParams

from app.deadline import LONGEST_SECONDS, TIMEOUT_HEADER
from app.settings import Settings

ReadParameters = Callable[[bytes, Headers], "Parameters"]


class Parameters(BaseModel, frozen=True):
    """The query of `/detect` and `/detect/batch`; what it leaves out is as the settings say."""

    timeout: float = Field(gt=0, le=LONGEST_SECONDS, allow_inf_nan=False, description="most seconds to answer in")
    model: str | None = Field(None, description="its name in `/models`; unless given, the first there")
    threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="least score; unless given, the model's own in `/models`"
    )
    limit: int = Field(ge=1, description="most detections")
    labels: str | None = Field(None, description="only these, separated by commas")


def build_parameters_reader(settings: Settings) -> ReadParameters:
    """Returns what reads a query, and of the headers the time-out; it raises `RequestValidationError`."""
    defaults = _find_defaults(settings)

    @functools.lru_cache(64)  # who asks again asks the same
    def understand(query: bytes, timeout: str | None) -> Parameters:
        given = dict(QueryParams(query))
        if timeout:
            given.setdefault("timeout", timeout)
        try:
            return Parameters.model_validate({**defaults, **given})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error

    def read(query: bytes, headers: Headers) -> Parameters:
        return understand(query, headers.get(TIMEOUT_HEADER))

    return read


def document_parameters(settings: Settings, label: str) -> dict[str, Any]:
    """Returns OpenAPI's description of them; `label` is one that can be asked for."""
    defaults = _find_defaults(settings)
    properties = Parameters.model_json_schema()["properties"]
    parameters = [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in properties.items()
    ]
    for parameter in parameters:
        name, schema = parameter["name"], parameter["schema"]
        if name in defaults:
            schema["default"] = defaults[name]
        if name == "labels":
            parameter["example"] = label
    header = {"name": TIMEOUT_HEADER, "in": "header", "required": False, "description": "as `timeout`"}
    return {"parameters": [*parameters, header | {"schema": parameters[0]["schema"]}]}


def _find_defaults(settings: Settings) -> dict[str, Any]:
    return {"timeout": settings.timeout_seconds, "limit": settings.limit}

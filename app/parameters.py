"""What a request for detections may ask for, read in one go: FastAPI's own way costs as much as all else it does."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError

from app.deadline import LONGEST_SECONDS, TIMEOUT_HEADER
from app.settings import Settings

_RAW_TIMEOUT_HEADER = TIMEOUT_HEADER.lower().encode()


class Parameters(BaseModel):
    """The query of `/detect` and `/detect/batch`; what it leaves out is as the settings say."""

    timeout: float = Field(gt=0, le=LONGEST_SECONDS, allow_inf_nan=False, description="most seconds to answer in")
    model: str | None = Field(None, description="its name in `/models`; unless given, the first there")
    threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="least score; unless given, the model's own in `/models`"
    )
    limit: int = Field(ge=1, description="most detections")
    labels: str | None = Field(None, description="only these, separated by commas")

    @classmethod
    def read(cls, request: Request, defaults: Mapping[str, Any]) -> Self:
        """Reads a request's query, and the header that may hold the time-out; raises `RequestValidationError`."""
        given = dict(request.query_params)
        if timeout := request.headers.get(TIMEOUT_HEADER):
            given.setdefault("timeout", timeout)
        try:
            return cls.model_validate({**defaults, **given})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error


@functools.lru_cache(64)
def glance(query: bytes, headers: tuple[tuple[bytes, bytes], ...], default_seconds: float) -> tuple[str | None, float]:
    """Returns the model, and the time-out in seconds, that a request seems to ask for; nothing is refused here."""
    given = dict(parse_qsl(query.decode("latin-1"), errors="replace"))
    seconds = given.get("timeout") or next((value for name, value in headers if name == _RAW_TIMEOUT_HEADER), None)
    model = given.get("model")
    with contextlib.suppress(ValueError):
        if seconds and 0 < float(seconds) <= LONGEST_SECONDS:
            return model, float(seconds)
    return model, default_seconds


def find_defaults(settings: Settings) -> dict[str, Any]:
    """Returns what a request gets that says nothing."""
    return {"timeout": settings.timeout_seconds, "limit": settings.limit}


def document_parameters(defaults: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Returns OpenAPI's description of them; `label` is one that can be asked for."""
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

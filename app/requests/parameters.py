"""The parameters of a detection request, read in one go.

FastAPI's own parsing of them costs as much as everything else that it does for a request.
"""

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import Headers, QueryParams

from app.requests.deadline import TIMEOUT_HEADER, Timeout
from app.settings import Settings

ReadParameters = Callable[[bytes, Headers], "Parameters"]


class Parameters(BaseModel, frozen=True):
    """The query parameters of every route that detects objects; the settings have the defaults."""

    timeout: Timeout = Field(description="maximum time for the response, in seconds")
    model: str | None = Field(None, description="model name as in `/models`; default: the first one listed there")
    threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="minimum score; default: the model's threshold in `/models`"
    )
    limit: int = Field(
        ge=1, description="maximum number of detections per image; `max_detections` in `/models` is a maximum too"
    )
    labels: list[str] | None = Field(
        None, description="label to return, repeated for each, or several separated by commas; default: all"
    )


def build_parameters_reader(settings: Settings) -> ReadParameters:
    """Returns a function from a query string and headers to `Parameters`; it raises `RequestValidationError`.

    Of the headers it reads the timeout only.
    """
    defaults = _find_defaults(settings)

    @functools.lru_cache(64)  # clients tend to repeat the same parameters
    def parse(query: bytes, timeout: str | None) -> Parameters:
        given = _read_query(query)
        if timeout:
            given.setdefault("timeout", timeout)
        try:
            return Parameters.model_validate({**defaults, **given})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error

    def read(query: bytes, headers: Headers) -> Parameters:
        return parse(query, headers.get(TIMEOUT_HEADER))

    return read


def refuse_model(parameters: Parameters) -> None:
    """Raises `RequestValidationError` if the query names a model, for routes whose path names it."""
    if parameters.model is not None:
        raise RequestValidationError([{"loc": ("query", "model"), "msg": "the path names the model"}])


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Returns a hint at the known name that is most similar to an unknown one; None if none is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else None


def document_parameters(settings: Settings, label: str, model_in_path: bool = False) -> dict[str, Any]:
    """Returns the OpenAPI description of the parameters; `label` is the example for `labels`."""
    defaults = _find_defaults(settings)
    properties = Parameters.model_json_schema()["properties"]
    parameters = [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in properties.items()
        if not (model_in_path and name == "model")
    ]
    for parameter in parameters:
        name, schema = parameter["name"], parameter["schema"]
        if name in defaults:
            schema["default"] = defaults[name]
        if name == "labels":
            parameter["example"] = [label]
    header = {"name": TIMEOUT_HEADER, "in": "header", "required": False, "description": "the same as `timeout`"}
    return {"parameters": [*parameters, header | {"schema": parameters[0]["schema"]}]}


def _read_query(query: bytes) -> dict[str, Any]:
    """Returns the parameters by name; raises `RequestValidationError` for unknown and repeated ones.

    Labels may be repeated, as HTTP libraries write a list.
    """
    known = Parameters.model_fields
    given: dict[str, Any] = {}
    for name, value in QueryParams(query).multi_items():
        if name not in known:
            hint = suggest(name, known) or f"there are {', '.join(known)}"
            raise RequestValidationError([{"loc": ("query", name), "msg": f"there is no such parameter; {hint}"}])
        if name == "labels":
            given.setdefault(name, []).append(value)
        elif name in given:
            raise RequestValidationError([{"loc": ("query", name), "msg": "it is given more than once"}])
        else:
            given[name] = value
    return given


def _find_defaults(settings: Settings) -> dict[str, Any]:
    return {"timeout": settings.timeout_seconds, "limit": settings.limit}

"""The one table from exceptions to answers, which are `application/problem+json` (RFC 9457)."""

import dataclasses
import http
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.answers import Problem, UnknownLabel
from app.batcher import InferenceFailed, Overloaded, Stopped
from app.body import BodyTooLarge, EmptyBody, SlowBody
from app.form import InvalidForm
from app.metrics import Metrics
from app.service import NotReady
from model.image import BrokenImage, TooManyPixels, UnknownFormat


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of refusal: `reason` names it in the problem's type and in the metrics."""

    status: int
    reason: str
    title: str


KINDS: Mapping[type[Exception], Kind] = {
    EmptyBody: Kind(400, "empty-body", "No image was sent"),
    InvalidForm: Kind(400, "invalid-form", "The form does not hold one image"),
    SlowBody: Kind(408, "slow-body", "The image took too long to arrive"),
    BodyTooLarge: Kind(413, "body-too-large", "The image has too many bytes"),
    TooManyPixels: Kind(413, "too-many-pixels", "The image has too many pixels"),
    UnknownFormat: Kind(415, "unknown-format", "This is not an image of a known format"),
    BrokenImage: Kind(422, "broken-image", "The image is broken"),
    UnknownLabel: Kind(422, "unknown-label", "The model knows no such label"),
    RequestValidationError: Kind(422, "invalid-parameter", "A parameter is out of range"),
    ClientDisconnect: Kind(499, "client-gone", "The client hung up"),
    InferenceFailed: Kind(500, "inference-failed", "The model failed"),
    Exception: Kind(500, "internal-error", "The server failed"),
    Overloaded: Kind(503, "overloaded", "The server is busy"),
    NotReady: Kind(503, "not-ready", "The server is not ready"),
    Stopped: Kind(503, "stopped", "The server is stopping"),
}


def answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Makes `app` answer every exception of the table, and count it."""

    async def answer(_: Request, error: Exception) -> Response:
        kind = next(KINDS[each] for each in type(error).__mro__ if each in KINDS)
        metrics.rejections.labels(kind.reason).inc()
        headers = {"retry-after": str(error.retry_after_seconds)} if isinstance(error, Overloaded) else None
        return _respond(f"/docs#{kind.reason}", kind.title, kind.status, _explain(error), headers)

    async def answer_plain(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = http.HTTPStatus(error.status_code).phrase
        return _respond("about:blank", title, error.status_code, error.detail, error.headers)

    for kind in KINDS:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_plain)


def document(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns OpenAPI's description of a route's refusals."""
    schema = Problem.model_json_schema()
    kinds = {status: [kind for kind in KINDS.values() if kind.status == status] for status in statuses}
    return {
        status: {
            "description": "; ".join(kind.title for kind in kinds[status]),
            "content": {
                "application/problem+json": {
                    "schema": schema,
                    "examples": {
                        kind.reason: {
                            "value": {
                                "type": f"/docs#{kind.reason}",
                                "title": kind.title,
                                "status": status,
                                "detail": "what exactly, in words",
                            }
                        }
                        for kind in kinds[status]
                    },
                }
            },
        }
        for status in statuses
    }


def _explain(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
    if type(error) in KINDS and type(error) is not Exception:
        return str(error)
    return "an unexpected error; the server's log has the details"


def _respond(type_: str, title: str, status: int, detail: str, headers: Mapping[str, str] | None) -> Response:
    problem = {"type": type_, "title": title, "status": status, "detail": detail}
    return Response(json.dumps(problem), status, headers, "application/problem+json")

"""The one table from exceptions to answers, which are `application/problem+json` (RFC 9457)."""

import dataclasses
import functools
import http
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect

from app.accept import NotAcceptable
from app.admission import Overloaded, Stopped
from app.batcher import InferenceFailed
from app.body import BodyTooLarge, EmptyBody, InvalidJson, SlowBody, UnknownEncoding
from app.connections.exceptions import HeadTooLarge, InvalidRequest, SlowHead, TooManyConnections
from app.connections.write_backlog import SlowReader
from app.deadline import DeadlineExceeded
from app.form import InvalidForm
from app.keys import Unauthorized
from app.metrics import Metrics
from app.models import UnknownModel
from app.pipeline import TooManyImages, UnknownLabel
from app.rates import RateLimited
from app.request_id import get_request_id
from app.routes.tensors import InvalidTensor
from app.schemas import Problem
from app.served_model import NotReady
from model.image import BrokenImage, TooManyPixels, UnknownFormat

logger = logging.getLogger(__name__)

_REQUEST_ID = "7d9f0c1ee3a04d5f8a55a0a1c2f4b6d8"  # in the documentation
_MEDIA_TYPE = "application/problem+json"

Shape = Callable[[Problem], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """One kind of refusal: `reason` names it in the problem's type and in the metrics."""

    status: int
    reason: str
    title: str


KINDS: Mapping[type[Exception], Kind] = {
    EmptyBody: Kind(400, "empty-body", "No image was sent"),
    InvalidRequest: Kind(400, "invalid-request", "The request cannot be read"),
    InvalidForm: Kind(400, "invalid-form", "The form does not hold what is needed"),
    InvalidJson: Kind(400, "invalid-json", "The JSON does not hold what is needed"),
    InvalidTensor: Kind(400, "invalid-tensor", "The tensors are not what the model takes"),
    Unauthorized: Kind(401, "unauthorized", "A key is needed"),
    UnknownModel: Kind(404, "unknown-model", "There is no model of this name"),
    NotAcceptable: Kind(406, "not-acceptable", "There is no answer of an accepted type"),
    SlowHead: Kind(408, "slow-head", "The request took too long to arrive"),
    SlowBody: Kind(408, "slow-body", "The image took too long to arrive"),
    BodyTooLarge: Kind(413, "body-too-large", "The body has too many bytes"),
    TooManyImages: Kind(413, "too-many-images", "The request holds too many images"),
    TooManyPixels: Kind(413, "too-many-pixels", "The image has too many pixels"),
    UnknownEncoding: Kind(415, "unknown-encoding", "The body is compressed"),
    UnknownFormat: Kind(415, "unknown-format", "This is not an image of a known format"),
    BrokenImage: Kind(422, "broken-image", "The image is broken"),
    UnknownLabel: Kind(422, "unknown-label", "The model knows no such label"),
    RequestValidationError: Kind(422, "invalid-parameter", "A parameter is out of range"),
    RateLimited: Kind(429, "rate-limited", "Too many requests in too short a time"),
    HeadTooLarge: Kind(431, "head-too-large", "The request's headers have too many bytes"),
    ClientDisconnect: Kind(499, "client-gone", "The client hung up"),
    SlowReader: Kind(499, "slow-reader", "The client took too long to take its answer"),
    InferenceFailed: Kind(500, "inference-failed", "The model failed"),
    Exception: Kind(500, "internal-error", "The server failed"),
    Overloaded: Kind(503, "overloaded", "The server is busy"),
    TooManyConnections: Kind(503, "too-many-connections", "The server has too many clients"),
    NotReady: Kind(503, "not-ready", "The server is not ready"),
    Stopped: Kind(503, "stopped", "The server is stopping"),
    DeadlineExceeded: Kind(504, "deadline-exceeded", "The time is up"),
}


def answer_errors(app: FastAPI, metrics: Metrics, shapes: Mapping[str, Shape]) -> None:
    """Makes `app` answer every exception of the table, and count it.

    Below a path of `shapes` the problem is sent as JSON of that shape, for clients that speak another API.
    """

    async def answer(request: Request, error: Exception) -> Response:
        return send(request, describe(error, metrics), _choose_headers(error))

    async def answer_unexpected(request: Request, error: Exception) -> Response:
        logger.error("an unexpected error", exc_info=error)
        return await answer(request, error)

    async def answer_plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = http.HTTPStatus(error.status_code).phrase
        problem = Problem(
            type="about:blank",
            title=title,
            status=error.status_code,
            detail=error.detail,
            request_id=get_request_id(),
        )
        return send(request, problem, error.headers)

    def send(request: Request, problem: Problem, headers: Mapping[str, str] | None) -> Response:
        asked = request.scope["raw_path"].decode(errors="backslashreplace")
        fields = {"method": request.method, "path": asked, "status": problem.status}  # of a line in JSON
        message = "%s %s: %d %s: %s"
        logger.info(message, request.method, asked, problem.status, problem.title, problem.detail, extra=fields)
        for path, shape in shapes.items():
            if request.url.path.startswith(path):
                return Response(to_json(shape(problem)), problem.status, headers, "application/json")
        return Response(problem.model_dump_json(), problem.status, headers, _MEDIA_TYPE)

    for each in KINDS.values():
        metrics.rejections.labels(each.reason)  # at 0 from the start: an increase is seen only between two values
    handlers = dict.fromkeys(KINDS, answer) | {HTTPException: answer_plain, Exception: answer_unexpected}
    app.exception_handlers = {HTTPException: answer_plain}  # FastAPI has others of its own, closer to its routes
    # not as its handlers: what nobody expected would be answered outside of all middleware, and not be counted
    app.add_middleware(ExceptionMiddleware, handlers=handlers)


def describe(error: Exception, metrics: Metrics) -> Problem:
    """Returns the problem that the table makes of an exception, and counts it."""
    return _make_problem(_count(error, metrics), _explain(error), get_request_id())


def respond(error: Exception, metrics: Metrics) -> tuple[int, bytes]:
    """Answers an exception where there is no request that the answer could be shaped for, and counts it.

    Returns its status, and its own headers, an empty line and its body, as HTTP/1.1 has them. Under overload this is
    what the server does most: what is the same in each answer is written once.
    """
    kind = _count(error, metrics)
    head, before, after = _write_around_id(kind, _explain(error), tuple(_choose_headers(error).items()))
    body = b"%b%b%b" % (before, to_json(get_request_id()), after)
    return kind.status, b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def document(*statuses: int, shape: Shape | None = None) -> dict[int | str, dict[str, Any]]:
    """Returns OpenAPI's description of a route's refusals: problems, or JSON of `shape`."""
    media_type = "application/json" if shape else _MEDIA_TYPE
    schema = {"type": "object"} if shape else Problem.model_json_schema()
    kinds = {status: [kind for kind in KINDS.values() if kind.status == status] for status in statuses}
    return {
        status: {
            "description": "; ".join(kind.title for kind in kinds[status]),
            "content": {
                media_type: {
                    "schema": schema,
                    "examples": {
                        kind.reason: {"value": shape(problem) if shape else problem.model_dump()}
                        for kind in kinds[status]
                        for problem in [_make_problem(kind, "what exactly, in words", _REQUEST_ID)]
                    },
                }
            },
        }
        for status in statuses
    }


def _count(error: Exception, metrics: Metrics) -> Kind:
    kind = KINDS.get(type(error)) or next(KINDS[each] for each in type(error).__mro__ if each in KINDS)
    metrics.rejections.labels(kind.reason).inc()
    return kind


@functools.lru_cache
def _write_around_id(kind: Kind, detail: str, headers: tuple[tuple[str, str], ...]) -> tuple[bytes, bytes, bytes]:
    """Returns a problem's headers, its JSON up to the request's id, and what follows it."""
    lines = [f"{name}: {value}\r\n" for name, value in (*headers, ("content-type", _MEDIA_TYPE))]
    before, after = _make_problem(kind, detail, _REQUEST_ID).model_dump_json().encode().rsplit(to_json(_REQUEST_ID), 1)
    return "".join(lines).encode(), before, after


def _make_problem(kind: Kind, detail: str, request_id: str) -> Problem:
    kind_of = f"/docs#{kind.reason}"
    return Problem(type=kind_of, title=kind.title, status=kind.status, detail=detail, request_id=request_id)


def _choose_headers(error: Exception) -> Mapping[str, str]:
    if isinstance(error, Overloaded | RateLimited | TooManyConnections):
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, UnknownEncoding):
        return {"accept-encoding": "identity"}
    return {}


def _explain(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
    if type(error) in KINDS and type(error) is not Exception:
        return str(error)
    return "an unexpected error; the server's log has the details"

"""The one table from exceptions to error responses, as `application/problem+json` (RFC 9457)."""

import asyncio
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
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.keys import Unauthorized
from app.access.rates import RateLimited
from app.connections.exceptions import HeadTooLarge, InvalidRequest, SlowHead, TooManyConnections
from app.connections.write_backlog import SlowReader
from app.inference.admission import Overloaded, Stopped
from app.inference.batcher import InferenceFailed
from app.inference.models import UnknownModel
from app.inference.served_model import NotReady
from app.pipeline import TooManyImages, UnknownLabel
from app.requests.accept import NotAcceptable
from app.requests.body import BodyTooLarge, EmptyBody, InvalidJson, SlowBody, UnknownEncoding
from app.requests.deadline import DeadlineExceeded
from app.requests.disconnect import DISCONNECTED
from app.requests.form import InvalidForm
from app.routes.tensors import InvalidTensor
from app.schemas import Problem
from app.telemetry.metrics import Metrics
from app.telemetry.request_id import get_request_id
from model.image import BrokenImage, TooManyPixels, UnknownFormat

logger = logging.getLogger(__name__)

_REQUEST_ID = "7d9f0c1ee3a04d5f8a55a0a1c2f4b6d8"  # example in the documentation
_MEDIA_TYPE = "application/problem+json"

ProblemFormat = Callable[[Problem], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class ProblemKind:
    """The status and title of an error response; `reason` identifies it in the problem's `type` and in the metrics."""

    status: int
    reason: str
    title: str


PROBLEM_KINDS: Mapping[type[Exception], ProblemKind] = {
    EmptyBody: ProblemKind(400, "empty-body", "No image was sent"),
    InvalidRequest: ProblemKind(400, "invalid-request", "The request cannot be read"),
    InvalidForm: ProblemKind(400, "invalid-form", "The form does not hold what is needed"),
    InvalidJson: ProblemKind(400, "invalid-json", "The JSON does not hold what is needed"),
    InvalidTensor: ProblemKind(400, "invalid-tensor", "The tensors are not what the model takes"),
    Unauthorized: ProblemKind(401, "unauthorized", "An API key is required"),
    UnknownModel: ProblemKind(404, "unknown-model", "There is no model of this name"),
    NotAcceptable: ProblemKind(406, "not-acceptable", "No accepted media type is available"),
    SlowHead: ProblemKind(408, "slow-head", "The request took too long to arrive"),
    SlowBody: ProblemKind(408, "slow-body", "The image took too long to arrive"),
    BodyTooLarge: ProblemKind(413, "body-too-large", "The body has too many bytes"),
    TooManyImages: ProblemKind(413, "too-many-images", "The request holds too many images"),
    TooManyPixels: ProblemKind(413, "too-many-pixels", "The image has too many pixels"),
    UnknownEncoding: ProblemKind(415, "unknown-encoding", "The body is compressed"),
    UnknownFormat: ProblemKind(415, "unknown-format", "This is not an image of a known format"),
    BrokenImage: ProblemKind(422, "broken-image", "The image is broken"),
    UnknownLabel: ProblemKind(422, "unknown-label", "The model knows no such label"),
    RequestValidationError: ProblemKind(422, "invalid-parameter", "A parameter is invalid"),
    RateLimited: ProblemKind(429, "rate-limited", "Too many requests in too short a time"),
    HeadTooLarge: ProblemKind(431, "head-too-large", "The request's headers have too many bytes"),
    ClientDisconnect: ProblemKind(499, "client-gone", "The client disconnected"),
    SlowReader: ProblemKind(499, "slow-reader", "The client took too long to read the response"),
    InferenceFailed: ProblemKind(500, "inference-failed", "The model failed"),
    Exception: ProblemKind(500, "internal-error", "The server failed"),
    Overloaded: ProblemKind(503, "overloaded", "The server is busy"),
    TooManyConnections: ProblemKind(503, "too-many-connections", "The server has too many clients"),
    NotReady: ProblemKind(503, "not-ready", "The server is not ready"),
    Stopped: ProblemKind(503, "stopped", "The server is stopping"),
    DeadlineExceeded: ProblemKind(504, "deadline-exceeded", "The request timed out"),
}


def add_error_handlers(app: FastAPI, metrics: Metrics, formats: Mapping[str, ProblemFormat]) -> None:
    """Adds handlers to `app` that turn every exception of the table into a response, and count it.

    Under each path prefix of `formats` the problem is sent as JSON in that format, for clients of another API.
    """

    async def handle(request: Request, error: Exception) -> Response:
        return respond(request, build_problem(error, metrics), _choose_headers(error), choose_log_level(error))

    async def handle_unexpected(request: Request, error: Exception) -> Response:
        logger.error("an unexpected error", exc_info=error)
        return await handle(request, error)

    async def handle_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = http.HTTPStatus(error.status_code).phrase
        problem = Problem(
            type="about:blank",
            title=title,
            status=error.status_code,
            detail=error.detail,
            request_id=get_request_id(),
        )
        return respond(request, problem, error.headers)

    def respond(
        request: Request, problem: Problem, headers: Mapping[str, str] | None, log_level: int = logging.INFO
    ) -> Response:
        path = request.scope["raw_path"].decode(errors="backslashreplace")
        fields = {"method": request.method, "path": path, "status": problem.status}  # for the JSON log format
        values = (request.method, path, problem.status, problem.title, problem.detail)
        logger.log(log_level, "%s %s: %d %s: %s", *values, extra=fields)
        for prefix, format_problem in formats.items():
            if request.url.path.startswith(prefix):
                return Response(to_json(format_problem(problem)), problem.status, headers, "application/json")
        return Response(problem.model_dump_json(), problem.status, headers, _MEDIA_TYPE)

    for each in PROBLEM_KINDS.values():
        metrics.rejections.labels(each.reason)  # starts at 0: Prometheus needs two samples to see an increase
    handlers = dict.fromkeys(PROBLEM_KINDS, handle) | {
        HTTPException: handle_http_exception,
        Exception: handle_unexpected,
    }
    app.exception_handlers = {HTTPException: handle_http_exception}  # replaces FastAPI's own, which run first
    app.add_middleware(_RaiseStopped)
    # not as the app's handlers: those handle unexpected errors outside of all middleware, where nothing counts them
    app.add_middleware(ExceptionMiddleware, handlers=handlers)


class _RaiseStopped:
    """ASGI middleware that raises `Stopped` for a request that is still running when a stop has waited long enough."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # deadlines and disconnects raise their own errors; only another server, such as Ray's, cancels for more
            if DISCONNECTED not in scope.get("state", {}):
                raise
            raise Stopped("the server is stopping") from None


def build_problem(error: Exception, metrics: Metrics) -> Problem:
    """Returns the problem that describes an exception, and counts it."""
    return _make_problem(_count(error, metrics), _find_detail(error), get_request_id())


def encode_error_response(error: Exception, metrics: Metrics) -> tuple[int, bytes]:
    """Returns the status and the bytes of an HTTP/1.1 response to an exception, and counts it.

    The bytes are the headers specific to the error, an empty line and the body. For errors raised before there is a
    request. Under overload the server does little else, so the constant parts are cached.
    """
    kind = _count(error, metrics)
    head, before, after = _encode_around_id(kind, _find_detail(error), tuple(_choose_headers(error).items()))
    body = b"%b%b%b" % (before, to_json(get_request_id()), after)
    return kind.status, b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def choose_log_level(error: Exception) -> int:
    """Returns the level at which to log the refusal of a request."""
    # under overload there are thousands of these a second: they would drown the rest of the log
    return logging.DEBUG if isinstance(error, Overloaded | TooManyConnections) else logging.INFO


def document_problems(*statuses: int, format_problem: ProblemFormat | None = None) -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI description of a route's error responses: problems, or JSON as `format_problem` has it."""
    media_type = "application/json" if format_problem else _MEDIA_TYPE
    schema = {"type": "object"} if format_problem else Problem.model_json_schema()
    kinds = {status: [kind for kind in PROBLEM_KINDS.values() if kind.status == status] for status in statuses}
    return {
        status: {
            "description": "; ".join(kind.title for kind in kinds[status]),
            "content": {
                media_type: {
                    "schema": schema,
                    "examples": {
                        kind.reason: {"value": format_problem(problem) if format_problem else problem.model_dump()}
                        for kind in kinds[status]
                        for problem in [_make_problem(kind, "an explanation of this occurrence", _REQUEST_ID)]
                    },
                }
            },
        }
        for status in statuses
    }


def _count(error: Exception, metrics: Metrics) -> ProblemKind:
    kind = PROBLEM_KINDS.get(type(error)) or next(
        PROBLEM_KINDS[each] for each in type(error).__mro__ if each in PROBLEM_KINDS
    )
    metrics.rejections.labels(kind.reason).inc()
    return kind


@functools.lru_cache
def _encode_around_id(
    kind: ProblemKind, detail: str, headers: tuple[tuple[str, str], ...]
) -> tuple[bytes, bytes, bytes]:
    """Returns a problem's headers, its JSON up to the request id, and the rest of the JSON."""
    lines = [f"{name}: {value}\r\n" for name, value in (*headers, ("content-type", _MEDIA_TYPE))]
    before, after = _make_problem(kind, detail, _REQUEST_ID).model_dump_json().encode().rsplit(to_json(_REQUEST_ID), 1)
    return "".join(lines).encode(), before, after


def _make_problem(kind: ProblemKind, detail: str, request_id: str) -> Problem:
    type_uri = f"/docs#{kind.reason}"
    return Problem(type=type_uri, title=kind.title, status=kind.status, detail=detail, request_id=request_id)


def _choose_headers(error: Exception) -> Mapping[str, str]:
    if isinstance(error, Overloaded | RateLimited | TooManyConnections):
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, UnknownEncoding):
        return {"accept-encoding": "identity"}
    return {}


def _find_detail(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    if type(error) in PROBLEM_KINDS and type(error) is not Exception:
        return str(error)
    return "an unexpected error; the server's log has the details"

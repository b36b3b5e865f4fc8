"""Reads images out of a request's body, raw, as a form or as JSON, and counts the bytes while they arrive."""

import asyncio
import binascii
import json
from collections.abc import Callable

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.admission import Overloaded
from app.form import Form, InvalidForm, Part
from app.interruption import Interruption, cancelled_after
from app.metrics import Metrics
from app.settings import Settings

_FIELDS = 20  # most parts of a form beside the images; some clients send their settings along
_MOST_VALUES = 10_000  # of a JSON that holds images; many more than it may hold


class EmptyBody(Exception):
    """The request carries no image."""


class BodyTooLarge(Exception):
    """The body is, or says it is, longer than allowed."""


class SlowBody(Exception):
    """The body took too long to arrive."""


class UnknownEncoding(Exception):
    """The body is compressed: what it would become is not bounded by what arrives."""


class InvalidJson(Exception):
    """The body is no JSON, or not of the shape that the route needs."""


class BoundBodies:
    """ASGI middleware that bounds what the bodies of all requests hold in memory.

    Where it is too much, the body that has been arriving the longest is given up, `SlowBody`, so that whoever sends
    slowly keeps nobody out; where none is arriving, it is `Overloaded`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held = 0
        self._arriving: dict[_Body, None] = {}  # the first to begin comes first
        metrics.body_bytes.set_function(lambda: self._held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, and counts its bytes from when they arrive until it is answered."""
        body = _Body()

        async def receive_counted() -> Message:
            fault = SlowBody("there is no room left for a body that takes so long: send it again")
            with Interruption(fault) as body.wait:
                message = await receive()
            if body.is_given_up:  # while it was not waiting
                raise fault
            self._hold(body, len(message.get("body", b"")))
            if message.get("more_body"):
                self._arriving[body] = None
            else:
                self._arriving.pop(body, None)
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._let_go(body)

    def _hold(self, body: "_Body", size: int) -> None:
        while self._held + size > self._max_bytes:
            slowest = next(iter(self._arriving), body)
            if slowest is body:
                raise Overloaded(1)
            self._let_go(slowest)
            slowest.is_given_up = True
            slowest.wait.end()
        body.size += size
        self._held += size

    def _let_go(self, body: "_Body") -> None:
        self._arriving.pop(body, None)
        self._held -= body.size
        body.size = 0


class _Body:
    """What has arrived of a request's body."""

    size = 0  # bytes
    wait: Interruption  # for more of it
    is_given_up = False


async def read_body(request: Request, max_bytes: int, settings: Settings) -> bytes:
    """Returns the body as it is; raises `BodyTooLarge`, `SlowBody`, `UnknownEncoding` and `ClientDisconnect`."""
    chunks: list[bytes] = []
    await _receive(request, max_bytes, settings.body_timeout_seconds, chunks.append)
    return b"".join(chunks)


async def read_parts(request: Request, max_bytes: int, settings: Settings, max_images: int = 1) -> list[Part]:
    """Returns a multipart form's parts; a body of another type is one file without a name.

    Raises what `read_body` raises, and `InvalidForm`.
    """
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        return [Part("", True, await read_body(request, max_bytes, settings))]
    form = Form(content_type, max_images + _FIELDS)
    await _receive(request, max_bytes, settings.body_timeout_seconds, form.write)
    return form.read_parts()


async def read_image(request: Request, settings: Settings) -> bytes:
    """Returns the image file's bytes: the body itself, or the one file of a multipart form, whatever its name.

    Raises what `read_parts` raises, and `EmptyBody`.
    """
    files = [part.data for part in await read_parts(request, settings.max_image_bytes, settings) if part.is_file]
    if len(files) != 1:
        raise InvalidForm(f"the form holds {len(files) or 'no'} files: send one, with a file name")
    if not files[0]:
        raise EmptyBody("send an image as the body, or as a file in a multipart form")
    return files[0]


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """Returns all files of a form, of `{"images": ["<base64>", …]}`, or the body itself as the only one.

    Raises what `read_parts` raises, `EmptyBody`, and `InvalidJson`.
    """
    parts = await read_parts(request, settings.max_request_bytes, settings, settings.max_request_images)
    files = [part.data for part in parts if part.is_file]
    if request.headers.get("content-type", "").lower().startswith("application/json"):
        files = await asyncio.to_thread(_decode_json, files[0])
    if not any(files):
        raise EmptyBody("send images as the files of a multipart form, or as base64 in JSON")
    return files


def check_values(body: bytes, most: int) -> None:
    """Raises `InvalidJson` for a JSON of more values than allowed: it is parsed while nothing else is done."""
    if sum(map(body.count, (b",", b"[", b"{"))) > most:
        raise InvalidJson(f"the JSON has more than {most} values")


def _decode_json(body: bytes) -> list[bytes]:
    check_values(body, _MOST_VALUES)
    try:
        images = json.loads(body)["images"]
        return [binascii.a2b_base64(image, strict_mode=True) for image in images]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        usage = 'send {"images": ["<base64>", …]}, without line ends or data: in the base64'
        raise InvalidJson(f"{usage}: {error}") from error


def check_file_size(size: int, max_bytes: int) -> None:
    """Raises `BodyTooLarge` or `EmptyBody` for a file of so many bytes."""
    if size > max_bytes:
        raise BodyTooLarge(f"the file is longer than {max_bytes} bytes")
    if not size:
        raise EmptyBody("the file is empty")


async def _receive(request: Request, max_bytes: int, timeout_seconds: float, take: Callable[[bytes], None]) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnknownEncoding("send the body as it is, without Content-Encoding")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")
    received = 0
    with cancelled_after(timeout_seconds, SlowBody(f"the body did not arrive within {timeout_seconds:g} s")):
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")
            take(chunk)

"""Reads images from request bodies (raw, multipart form or JSON) and limits the size while they arrive."""

import asyncio
import binascii
import json
from collections.abc import Callable, Sequence

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.inference.admission import Overloaded
from app.requests.form import FormParser, InvalidForm, Part
from app.requests.interruption import Interruption, cancelled_after
from app.requests.parameters import Parameters
from app.settings import Settings
from app.telemetry.metrics import Metrics

_MAX_OTHER_PARTS = 20  # of a form, beside the images: DeepStack's clients send settings as fields
_MAX_JSON_VALUES = 10_000  # far more than the images that a request may hold


class EmptyBody(Exception):
    """The request contains no image."""


class BodyTooLarge(Exception):
    """The body, or its declared Content-Length, is larger than allowed."""


class SlowBody(Exception):
    """The body took too long to arrive, or was given up in favour of others."""


class UnknownEncoding(Exception):
    """The body is compressed; its decompressed size would be unbounded."""


class InvalidJson(Exception):
    """The body is not JSON, or lacks what the route needs."""


class LimitBodyMemory:
    """ASGI middleware that limits the memory that the bodies of all requests take together.

    Above `max_bytes` it aborts the upload that began first with `SlowBody`, so that slow uploads cannot lock out other
    clients. If the current body is the oldest, or none is arriving, it raises `Overloaded`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held = 0
        self._arriving: dict[_Body, None] = {}  # incomplete bodies, the oldest first
        metrics.body_bytes.set_function(lambda: self._held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; counts its body's bytes from their arrival until the response is complete."""
        body = _Body()

        async def receive_counted() -> Message:
            error = SlowBody("the upload was aborted to free memory for others: send it again")
            with Interruption(error) as body.wait:
                message = await receive()
            if body.is_aborted:  # while it was not waiting
                raise error
            self._reserve(body, len(message.get("body", b"")))
            if message.get("more_body"):
                self._arriving[body] = None
            else:
                self._arriving.pop(body, None)
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._release(body)

    def _reserve(self, body: "_Body", size: int) -> None:
        while self._held + size > self._max_bytes:
            oldest = next(iter(self._arriving), body)
            if oldest is body:
                raise Overloaded(1)
            self._release(oldest)
            oldest.is_aborted = True
            oldest.wait.end()
        body.size += size
        self._held += size

    def _release(self, body: "_Body") -> None:
        self._arriving.pop(body, None)
        self._held -= body.size
        body.size = 0


class _Body:
    """The state of one request's body."""

    size = 0  # bytes received
    wait: Interruption  # of the task that waits for more
    is_aborted = False


async def read_body(request: Request, max_bytes: int, settings: Settings) -> bytes:
    """Returns the raw body; raises `BodyTooLarge`, `SlowBody`, `UnknownEncoding` and `ClientDisconnect`."""
    chunks: list[bytes] = []
    await _receive(request, max_bytes, settings.body_timeout_seconds, chunks.append)
    return b"".join(chunks)


async def read_parts(request: Request, max_bytes: int, settings: Settings, max_images: int = 1) -> list[Part]:
    """Returns the parts of a multipart form; a body of any other type is one unnamed file.

    Raises what `read_body` raises, and `InvalidForm`.
    """
    if not _has_type(request, "multipart/form-data"):
        return [Part("", True, await read_body(request, max_bytes, settings))]
    form = FormParser(request.headers["content-type"], max_images + _MAX_OTHER_PARTS)
    await _receive(request, max_bytes, settings.body_timeout_seconds, form.write)
    return form.read_parts()


async def read_image(request: Request, settings: Settings) -> bytes:
    """Returns the image file's bytes: the body itself, or the only file of a multipart form, of any name.

    Raises what `read_parts` raises, and `EmptyBody`.
    """
    files = _find_files(await read_parts(request, settings.max_image_bytes, settings))
    if len(files) != 1:
        raise InvalidForm(f"the form holds {len(files) or 'no'} files: send one, with a file name")
    if not files[0]:
        raise EmptyBody("send an image as the body, or as a file in a multipart form")
    return files[0]


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """Returns all files of a form or of `{"images": ["<base64>", …]}`; any other body is the only file.

    Raises what `read_parts` raises, `EmptyBody`, and `InvalidJson`.
    """
    parts = await read_parts(request, settings.max_request_bytes, settings, settings.max_request_images)
    files = _find_files(parts)
    is_raw = not _has_type(request, "multipart/form-data")
    if is_raw and (_has_type(request, "application/json") or files[0].startswith(b"{")):  # as no image does
        files = await asyncio.to_thread(_decode_json, files[0])
    if not any(files):
        raise EmptyBody("send images as the files of a multipart form, or as base64 in JSON")
    return files


def _has_type(request: Request, media_type: str) -> bool:
    return request.headers.get("content-type", "").lower().startswith(media_type)


def _find_files(parts: Sequence[Part]) -> list[bytes]:
    for part in parts:
        if not part.is_file and part.name in Parameters.model_fields:
            raise InvalidForm(f"send {part.name} in the query, as in ?{part.name}=…, not in the form")
    return [part.data for part in parts if part.is_file]


def check_value_count(body: bytes, maximum: int, usage: str) -> None:
    """Raises `InvalidJson`, with `usage`, for JSON with too many values: the parser would hold the GIL for too long."""
    if sum(map(body.count, (b",", b"[", b"{"))) > maximum:
        raise InvalidJson(f"the JSON has more than {maximum} values: {usage}")


def _decode_json(body: bytes) -> list[bytes]:
    usage = 'send {"images": ["<base64>", …]}, without line breaks or a data: prefix in the base64'
    check_value_count(body, _MAX_JSON_VALUES, usage)
    try:
        fields = json.loads(body)
        images = [binascii.a2b_base64(image, strict_mode=True) for image in fields["images"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidJson(f"{usage}: {error}") from error
    for name in fields:
        if name != "images":
            raise InvalidJson(f"{usage}: there is no field {name!r}; parameters are in the query, as in ?limit=…")
    return images


def check_file_size(size: int, max_bytes: int) -> None:
    """Checks a file's size in bytes; raises `BodyTooLarge` and `EmptyBody`."""
    if size > max_bytes:
        raise BodyTooLarge(f"the file is longer than {max_bytes} bytes")
    if not size:
        raise EmptyBody("the file is empty")


async def _receive(request: Request, max_bytes: int, timeout_seconds: float, write: Callable[[bytes], None]) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnknownEncoding("send the body uncompressed, without Content-Encoding")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")
    received = 0
    with cancelled_after(timeout_seconds, SlowBody(f"the body did not arrive within {timeout_seconds:g} s")):
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")
            write(chunk)

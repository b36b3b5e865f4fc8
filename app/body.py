"""Reads an image out of a request's body, raw or as a form, and counts the bytes while they arrive."""

import asyncio
from collections.abc import Callable

from fastapi import Request

from app.form import Form


class EmptyBody(Exception):
    """The request carries no image."""


class BodyTooLarge(Exception):
    """The body is, or says it is, longer than allowed."""


class SlowBody(Exception):
    """The body took too long to arrive."""


async def read_image(request: Request, max_bytes: int, timeout_seconds: float) -> bytes:
    """Returns the image file's bytes: the body itself, or the one file of a multipart form, whatever its name.

    Raises `EmptyBody`, `BodyTooLarge`, `InvalidForm`, `SlowBody`, and Starlette's `ClientDisconnect`.
    """
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")
    content_type = request.headers.get("content-type", "")
    try:
        async with asyncio.timeout(timeout_seconds):
            if content_type.lower().startswith("multipart/form-data"):
                form = Form(content_type)
                await _receive(request, max_bytes, form.write)
                data = form.read_file()
            else:
                chunks: list[bytes] = []
                await _receive(request, max_bytes, chunks.append)
                data = b"".join(chunks)
    except TimeoutError as error:
        raise SlowBody(f"the body did not arrive within {timeout_seconds:g} s") from error
    if not data:
        raise EmptyBody("send an image as the body, or as a file in a multipart form")
    return data


async def _receive(request: Request, max_bytes: int, take: Callable[[bytes], None]) -> None:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")
        take(chunk)

"""Cancels the work for a client that has disconnected."""

import asyncio
import contextlib
from collections.abc import Iterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.requests.interruption import cancelled_by

DISCONNECTED = "disconnected"  # key in a request's state: a future that its connection resolves


@contextlib.contextmanager
def cancelled_on_disconnect(request: Request) -> Iterator[None]:
    """Cancels its block when the client disconnects, and raises `ClientDisconnect`; the body must have been read."""
    future: asyncio.Future[None] | None = getattr(request.state, DISCONNECTED, None)
    disconnected = future or asyncio.create_task(_wait_for_disconnect(request))
    try:
        with cancelled_by(disconnected, ClientDisconnect()):
            yield
    finally:
        if not future:
            disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""Ends the work for a client that has gone."""

import asyncio
import contextlib
from collections.abc import Iterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.interruption import cancelled_by

HUNG_UP = "hung_up"  # in a request's state, where its connection tells: a future


@contextlib.contextmanager
def cancelled_on_disconnect(request: Request) -> Iterator[None]:
    """Cancels its block when the client hangs up, and raises `ClientDisconnect`; the body must have been read."""
    told: asyncio.Future[None] | None = getattr(request.state, HUNG_UP, None)
    watched = told or asyncio.create_task(_watch(request))
    try:
        with cancelled_by(watched, ClientDisconnect()):
            yield
    finally:
        if not told:
            watched.cancel()


async def _watch(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

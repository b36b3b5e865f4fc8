"""Ends the work for a client that has gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect


@contextlib.asynccontextmanager
async def cancelled_on_disconnect(request: Request) -> AsyncIterator[None]:
    """Cancels its block when the client hangs up, and raises `ClientDisconnect`; the body must have been read."""
    work = asyncio.current_task()
    assert work is not None
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        work.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if hung_up and work.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()

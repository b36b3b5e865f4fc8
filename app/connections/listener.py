"""How the server listens: uvicorn with this project's connections."""

import asyncio
import contextlib
import functools
import logging
import resource
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.connections.connection import Buffered, Connection
from app.connections.door import Door
from app.connections.untaken import UntakenAnswers
from app.errors import encode_error_response
from app.service import Service
from app.settings import Settings

_READ_BYTES = 256 * 1024  # at a time
_OTHER_FILES = 100  # beside connections, and those that wait to be refused

logger = logging.getLogger(__name__)


class _Companion(uvicorn.Server):
    """A server that leaves the signals to another one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def configure(app: FastAPI, settings: Settings, host: str, port: int) -> uvicorn.Config:
    """Returns how uvicorn serves an app of `create_app` at an address."""
    service: Service = app.state.service
    answer = functools.partial(encode_error_response, metrics=service.metrics)
    door = Door(app.state.image_paths, service.announce)
    untaken = UntakenAnswers(settings)
    buffer = memoryview(bytearray(_READ_BYTES))

    def connect(**uvicorn: Any) -> Buffered:
        return Buffered(Connection(settings, service.metrics, answer, door, untaken, buffer, **uvicorn))

    protocol: Any = connect
    # uvicorn says int, and takes any number
    keep_alive: Any = settings.idle_timeout_seconds
    grace: Any = settings.stop_timeout_seconds
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=settings.log_level == "debug",
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=grace,
    )


def listen(app: FastAPI, settings: Settings) -> list[tuple[uvicorn.Server, socket.socket]]:
    """Returns the server, and the one of its metrics if they have a port of their own, with sockets that listen."""
    allow_open_files(2 * settings.max_connections + _OTHER_FILES)
    servers: list[uvicorn.Server] = [uvicorn.Server(configure(app, settings, settings.host, settings.port))]
    if settings.metrics_port is not None:
        host = settings.metrics_host or settings.host
        servers.append(_Companion(configure(app.state.admin, settings, host, settings.metrics_port)))
    pairs = [(server, server.config.bind_socket()) for server in servers]
    for _, listener in pairs:
        listener.listen()  # who reads where it listens may connect at once
    return pairs


async def serve(pairs: Sequence[tuple[uvicorn.Server, socket.socket]]) -> None:
    """Serves until a signal ends the first, and the others with it."""
    (server, listener), *companions = pairs
    tasks = [asyncio.create_task(each.serve(sockets=[its_listener])) for each, its_listener in companions]
    try:
        await server.serve(sockets=[listener])
    finally:
        for each, _ in companions:
            each.should_exit = True
        await asyncio.gather(*tasks)


def allow_open_files(count: int) -> None:
    """Lets the process have so many connections and files, as far as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < count:
        logger.warning("the system allows %d open files: too few for max_connections", possible)

"""Listening sockets, and uvicorn with this project's connections."""

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

from app.connections.connection import BufferedAdapter, Connection
from app.connections.load_shedding import LoadShedder
from app.connections.write_backlog import WriteBacklog
from app.errors import encode_error_response
from app.service import Service
from app.settings import Settings
from model.errors import UserError

_READ_BYTES = 256 * 1024  # of the read buffer
_OTHER_FILES = 100  # besides accepted connections and those over the limit

logger = logging.getLogger(__name__)


class AddressUnavailable(UserError):
    """The server cannot listen on an address; the message names it."""


class _MetricsServer(uvicorn.Server):
    """A server that leaves signals to the main server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures no signals."""
        yield


def configure(app: FastAPI, settings: Settings, host: str, port: int) -> uvicorn.Config:
    """Returns uvicorn's configuration for an app of `create_app` at an address."""
    service: Service = app.state.service
    respond_and_count = functools.partial(encode_error_response, metrics=service.metrics)
    shedder = LoadShedder(app.state.image_paths, service.announce)
    backlog = WriteBacklog(settings)
    buffer = memoryview(bytearray(_READ_BYTES))

    def connect(**uvicorn: Any) -> BufferedAdapter:
        return BufferedAdapter(
            Connection(settings, service.metrics, respond_and_count, shedder, backlog, buffer, **uvicorn)
        )

    protocol: Any = connect
    # uvicorn declares int, but takes any number
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
    """Returns the server, and the metrics server if it has its own port, each with its listening socket.

    Raises `AddressUnavailable`.
    """
    raise_open_file_limit(2 * settings.max_connections + _OTHER_FILES)
    servers: list[uvicorn.Server] = [uvicorn.Server(configure(app, settings, settings.host, settings.port))]
    if settings.metrics_port is not None:
        host = settings.metrics_host or settings.host
        servers.append(_MetricsServer(configure(app.state.admin, settings, host, settings.metrics_port)))
    return [(server, _open_listener(server.config.host, server.config.port)) for server in servers]


def _open_listener(host: str, port: int) -> socket.socket:
    try:
        if ":" not in host:
            return socket.create_server((host, port))
        dual_stack = socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=dual_stack)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # the rest is the address as Python writes it
        raise AddressUnavailable(f"cannot listen on {host}, port {port}: {reason}") from error


async def serve(pairs: Sequence[tuple[uvicorn.Server, socket.socket]]) -> None:
    """Serves until a signal stops the first server, then stops the others."""
    (server, listener), *others = pairs
    tasks = [asyncio.create_task(each.serve(sockets=[its_listener])) for each, its_listener in others]
    try:
        await server.serve(sockets=[listener])
    finally:
        for each, _ in others:
            each.should_exit = True
        await asyncio.gather(*tasks)
        for each, _ in pairs:  # what is left would wait for clients that do not read
            for connection in [*each.server_state.connections]:
                connection.transport.abort()


def raise_open_file_limit(count: int) -> None:
    """Raises the soft limit of open files to `count`, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < count:
        logger.warning("the system allows %d open files: too few for max_connections", possible)

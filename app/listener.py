"""How the server listens: uvicorn with this project's connections."""

import functools
import logging
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.connection import Connection
from app.errors import respond
from app.settings import Settings

_GRACE_SECONDS = 8  # Docker kills after ten

logger = logging.getLogger(__name__)


def configure(app: FastAPI, settings: Settings, port: int) -> uvicorn.Config:
    """Returns how uvicorn serves an app of `create_app` on a port."""
    metrics = app.state.metrics
    protocol: Any = functools.partial(Connection, settings, metrics, functools.partial(respond, metrics=metrics))
    keep_alive: Any = settings.idle_timeout_seconds  # uvicorn says int, and takes any number
    return uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        loop="uvloop",
        http=protocol,
        ws="none",
        log_config=None,
        access_log=settings.log_level == "debug",
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


def allow_open_files(count: int) -> None:
    """Lets the process have so many connections and files, as far as the system does."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < count:
        logger.warning("the system allows %d open files: too few for max_connections", possible)

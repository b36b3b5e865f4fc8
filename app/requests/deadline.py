"""Request deadlines."""

import contextlib
from collections.abc import Callable, Coroutine
from typing import Annotated

from fastapi import Header, Query

from app.requests.interruption import cancelled_after

LONGEST_SECONDS = 3600.0
TIMEOUT_HEADER = "X-Request-Timeout"


class DeadlineExceeded(Exception):
    """The request's deadline passed before its response was ready."""


def answered_within(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Cancels its block after `seconds` and raises `DeadlineExceeded`; its queued items are not computed."""
    return cancelled_after(seconds, DeadlineExceeded(f"the response was not ready within {seconds:g} s"))


def build_timeout_reader(default_seconds: float) -> Callable[..., Coroutine[None, None, float]]:
    """Returns a FastAPI dependency that reads a request's timeout in seconds."""

    async def read_timeout(
        in_query: Annotated[
            float | None,
            Query(
                alias="timeout",
                gt=0,
                le=LONGEST_SECONDS,
                allow_inf_nan=False,
                description="maximum time for the response, in seconds",
            ),
        ] = None,
        in_header: Annotated[
            float | None,
            Header(
                alias=TIMEOUT_HEADER,
                gt=0,
                le=LONGEST_SECONDS,
                allow_inf_nan=False,
                description="the same as `timeout`",
            ),
        ] = None,
    ) -> float:
        return in_query or in_header or default_seconds

    return read_timeout

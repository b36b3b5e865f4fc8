"""Ends the work for a request whose time is up."""

import contextlib
from collections.abc import Callable, Coroutine
from typing import Annotated

from fastapi import Header, Query

from app.interruption import cancelled_after

LONGEST_SECONDS = 3600.0
TIMEOUT_HEADER = "X-Request-Timeout"


class DeadlineExceeded(Exception):
    """The request's time was up before its answer was there."""


def answered_within(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Cancels its block after that time and raises `DeadlineExceeded`; what is queued of it is not computed."""
    return cancelled_after(seconds, DeadlineExceeded(f"the answer was not there within {seconds:g} s"))


def build_timeout_reader(default_seconds: float) -> Callable[..., Coroutine[None, None, float]]:
    """Returns the dependency that reads a request's time-out in seconds."""

    async def read_timeout(
        in_query: Annotated[
            float | None,
            Query(
                alias="timeout", gt=0, le=LONGEST_SECONDS, allow_inf_nan=False, description="most seconds to answer in"
            ),
        ] = None,
        in_header: Annotated[
            float | None,
            Header(alias=TIMEOUT_HEADER, gt=0, le=LONGEST_SECONDS, allow_inf_nan=False, description="as `timeout`"),
        ] = None,
    ) -> float:
        return in_query or in_header or default_seconds

    return read_timeout

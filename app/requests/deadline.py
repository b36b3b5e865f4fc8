"""Request deadlines."""

import contextlib
from typing import Annotated

from pydantic import Field

from app.requests.interruption import cancelled_after

TIMEOUT_HEADER = "X-Request-Timeout"
Timeout = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]  # of a request, in seconds


class DeadlineExceeded(Exception):
    """The request's deadline passed before its response was ready."""


def answered_within(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Cancels its block after `seconds` and raises `DeadlineExceeded`; its queued items are not computed."""
    return cancelled_after(seconds, DeadlineExceeded(f"the response was not ready within {seconds:g} s"))

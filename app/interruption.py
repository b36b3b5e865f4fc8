"""Blocks of a task that are ended from outside."""

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self


class Interruption:
    """A block of a task, entered once, that `end` cancels; it raises `error` then."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._is_due = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._others = self._task.cancelling()
        return self

    def end(self, *_: object) -> None:
        """Ends the block, if it has not ended."""
        if self._task and not self._is_due:
            self._is_due = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        task, self._task = self._task, None
        assert task is not None
        if self._is_due and task.uncancel() <= self._others and kind is asyncio.CancelledError:
            raise self._error from None


@contextlib.contextmanager
def cancelled_after(seconds: float, error: Exception) -> Iterator[None]:
    """Cancels its block after that time, and raises the error."""
    with Interruption(error) as block:
        clock = asyncio.get_running_loop().call_later(seconds, block.end)
        try:
            yield
        finally:
            clock.cancel()


@contextlib.contextmanager
def cancelled_by(event: asyncio.Future[Any], error: Exception) -> Iterator[None]:
    """Cancels its block as soon as the future is done, and raises the error."""
    with Interruption(error) as block:
        event.add_done_callback(block.end)
        try:
            yield
        finally:
            event.remove_done_callback(block.end)

"""Blocks of a task that something outside can cancel, by a timer or a future."""

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self


class Interruption:
    """A cancel scope, entered once: `end` cancels its block, which then raises `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._is_cancelled = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._earlier_cancellations = self._task.cancelling()
        return self

    def end(self, *_: object) -> None:
        """Cancels the block, unless it has ended."""
        if self._task and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        task, self._task = self._task, None
        assert task is not None
        if self._is_cancelled and task.uncancel() <= self._earlier_cancellations and kind is asyncio.CancelledError:
            raise self._error from None


@contextlib.contextmanager
def cancelled_after(seconds: float, error: Exception) -> Iterator[None]:
    """Cancels its block after `seconds`, and raises `error`."""
    with Interruption(error) as block:
        timer = asyncio.get_running_loop().call_later(seconds, block.end)
        try:
            yield
        finally:
            timer.cancel()


@contextlib.contextmanager
def cancelled_by(future: asyncio.Future[Any], error: Exception) -> Iterator[None]:
    """Cancels its block as soon as `future` is done, and raises `error`."""
    with Interruption(error) as block:
        future.add_done_callback(block.end)
        try:
            yield
        finally:
            future.remove_done_callback(block.end)

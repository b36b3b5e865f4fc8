"""Turns single requests into batches, without a timer: what arrived during one run is the next batch."""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Overloaded(Exception):
    """Every place is taken; `retry_after_seconds` is when one should be free."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Stopped(Exception):
    """The server is shutting down, or its inference has ended."""


class InferenceFailed(Exception):
    """The model could not compute the batch that this request was part of."""


@dataclasses.dataclass(frozen=True)
class Served(Generic[Result]):
    """A result, how long its item waited in the queue, and how long its batch was computed."""

    result: Result
    queue_seconds: float
    inference_seconds: float


@dataclasses.dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Served[Result]]
    since: float

    def resolve(self, result: Result, started: float, inference_seconds: float) -> None:
        if not self.future.done():
            self.future.set_result(Served(result, started - self.since, inference_seconds))

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher(Generic[Item, Result]):
    """Runs `compute` in a thread of its own over up to `max_batch` items at once, first come, first served.

    At most `max_queue` items are admitted at a time, so that the queue is bounded, and with it the memory of what
    happens before it. `compute` returns one result for each item; where it raises, only its own batch fails.
    """

    def __init__(self, compute: Callable[[Sequence[Item]], Sequence[Result]], max_batch: int, max_queue: int) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._waiting: collections.deque[_Waiting[Item, Result]] = collections.deque()
        self._wake = asyncio.Event()
        self._closed = False
        self._seconds_per_item = 0.0
        self.running = False
        self.admitted = 0

    @property
    def closed(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._closed

    @property
    def queued(self) -> int:
        """How many items wait for the next batch."""
        return len(self._waiting)

    @contextlib.contextmanager
    def admit(self, places: int = 1) -> Iterator[Callable[[Item], Awaitable[Served[Result]]]]:
        """Holds places from the request's first byte on and gives the way to use them; raises `Overloaded`, `Stopped`.

        Awaiting what it gives raises `InferenceFailed` or `Stopped`; cancelled while queued, the item is not computed.
        """
        if self._closed:
            raise Stopped("the server is stopping")
        if self.admitted + places > self._max_queue:
            raise Overloaded(min(60, max(1, math.ceil(self.admitted * self._seconds_per_item))))
        self.admitted += places
        try:
            yield self._submit
        finally:
            self.admitted -= places

    async def run(self) -> None:
        """Forms batches and computes them until `close`; a batch that has begun is finished."""
        worker = ThreadPoolExecutor(1, "inference")
        self.running = True
        try:
            while await self._wake.wait() and not self._closed:
                if batch := self._take():
                    await self._run(batch, worker)
        finally:
            self.running = False
            self.close()
            worker.shutdown(wait=False)

    def close(self) -> None:
        """Admits nobody any more, and ends what is queued with `Stopped`."""
        self._closed = True
        self._wake.set()
        while self._waiting:
            self._waiting.popleft().fail(Stopped("the server is stopping"))

    async def _submit(self, item: Item) -> Served[Result]:
        if self._closed:
            raise Stopped("the server is stopping")
        waiting = _Waiting[Item, Result](item, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(waiting)
        self._wake.set()
        return await waiting.future

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
            if not waiting.future.done():  # done already: its client has gone
                batch.append(waiting)
        if not self._waiting:
            self._wake.clear()
        return batch

    async def _run(self, batch: list[_Waiting[Item, Result]], worker: ThreadPoolExecutor) -> None:
        started = time.perf_counter()
        items = [waiting.item for waiting in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(worker, self._compute, items)
            seconds = time.perf_counter() - started
            for waiting, result in zip(batch, results, strict=True):
                waiting.resolve(result, started, seconds)
            self._seconds_per_item += (seconds / len(batch) - self._seconds_per_item) * 0.1
        except Exception as error:
            logger.exception("a batch of %d failed", len(batch))
            for waiting in batch:
                failure = InferenceFailed("the model could not compute this image")
                failure.__cause__ = error
                waiting.fail(failure)
        finally:
            for waiting in batch:  # only where this task was cancelled is anything left to fail
                waiting.fail(Stopped("the server is stopping"))

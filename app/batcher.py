"""Turns single requests into batches, without a timer: what arrived during one run is the next batch."""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_FAILURES = 3  # batches in a row: fewer may be the fault of what is in them

logger = logging.getLogger(__name__)


class Overloaded(Exception):
    """Every place is taken, or the wait too long; `retry_after_seconds` is when to come again."""

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
    happens before it. `compute` returns one result for each item; where it raises, or takes longer than
    `timeout_seconds`, only its own batch fails. `on_drop` is called for each item whose request ended in the queue.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        max_batch: int,
        max_queue: int,
        timeout_seconds: float = 60.0,
        on_drop: Callable[[], object] = lambda: None,
    ) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._timeout_seconds = timeout_seconds
        self._on_drop = on_drop
        self._waiting: collections.deque[_Waiting[Item, Result]] = collections.deque()
        self._wake = asyncio.Event()
        self._closed = False
        self._retired = False
        self._guests = 0
        self._seconds_per_item = 0.0
        self._failures = 0
        self._left_behind: list[_Worker] = []
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

    @property
    def failing(self) -> bool:
        """Whether the last batches failed, one after the other."""
        return self._failures >= _MOST_FAILURES

    @property
    def hanging(self) -> bool:
        """Whether so many batches hang that it will not get better."""
        return sum(worker.is_alive() for worker in self._left_behind) >= _MOST_FAILURES

    def find_overload(self, places: int = 1, patience_seconds: float = math.inf) -> Overloaded | None:
        """Returns why so many would not be let in for want of places or time; None where there is room."""
        wait = self.admitted * self._seconds_per_item
        if self.admitted + places <= self._max_queue and 2 * wait <= patience_seconds:
            return None
        return Overloaded(min(60, max(1, math.ceil(wait))))

    @contextlib.contextmanager
    def admit(
        self, places: int = 1, patience_seconds: float = math.inf
    ) -> Iterator[Callable[[Item], Awaitable[Served[Result]]]]:
        """Holds places and gives the way to use them; raises `Overloaded`, `Stopped`.

        Nobody is let in whose wait, as it has gone of late, is more than half of `patience_seconds`: later ones may
        go slower, and what expires in the queue helps nobody. Awaiting what it gives raises `InferenceFailed` or
        `Stopped`; cancelled while queued, the item is not computed. With no places it asks whether there is room for
        one, and is waited for by `retire`.
        """
        if self._closed:
            raise Stopped("the server is stopping")
        if overload := self.find_overload(max(1, places), patience_seconds):
            raise overload
        self.admitted += places
        self._guests += 1
        try:
            yield self._submit
        finally:
            self.admitted -= places
            self._guests -= 1
            if self._retired and not self._guests:
                self.close()

    async def run(self) -> None:
        """Forms batches and computes them until `close`; a batch that has begun is finished."""
        worker = _Worker()
        self.running = True
        try:
            while await self._wake.wait() and not self._closed:
                if batch := self._take():
                    worker = await self._run(batch, worker)
        finally:
            self.running = False
            self.close()
            worker.stop()

    def retire(self) -> None:
        """Closes as soon as everybody admitted has left."""
        self._retired = True
        if not self._guests:
            self.close()

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
            if waiting.future.done():  # its client has gone, or its time is up
                self._on_drop()
            else:
                batch.append(waiting)
        if not self._waiting:
            self._wake.clear()
        return batch

    async def _run(self, batch: list[_Waiting[Item, Result]], worker: "_Worker") -> "_Worker":
        """Computes a batch, and returns who computes the next one."""
        started = time.perf_counter()
        items = [waiting.item for waiting in batch]
        try:
            async with asyncio.timeout(self._timeout_seconds):
                results = await worker.run(lambda: self._compute(items))
            seconds = time.perf_counter() - started
            for waiting, result in zip(batch, results, strict=True):
                waiting.resolve(result, started, seconds)
            self._seconds_per_item += (seconds / len(batch) - self._seconds_per_item) * 0.1
            self._failures = 0
        except Exception as error:
            self._failures += 1
            message = "the model could not compute this image"
            if isinstance(error, TimeoutError) and not worker.idle:
                message = f"the model took longer than {self._timeout_seconds:g} s"
                worker.stop()
                self._left_behind = [each for each in [*self._left_behind, worker] if each.is_alive()]
                worker = _Worker()
            logger.exception("a batch of %d failed: %s", len(batch), message)
            for waiting in batch:
                failure = InferenceFailed(message)
                failure.__cause__ = error
                waiting.fail(failure)
        finally:
            for waiting in batch:  # only where this task was cancelled is anything left to fail
                waiting.fail(Stopped("the server is stopping"))
        return worker


class _Worker:
    """A thread that computes for the event loop; as a daemon, so that one that hangs does not keep the process."""

    def __init__(self) -> None:
        self.idle = True
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[], Result]) -> Result:
        """Returns what `function` returns, or raises what it raises; cancelled, it leaves the thread to it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def finish(settle: Callable[[], None]) -> None:
            self.idle = True
            if not future.done():
                settle()

        def job() -> None:
            try:
                result = function()
                settle = functools.partial(future.set_result, result)
            except Exception as error:
                settle = functools.partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(finish, settle)

        self.idle = False
        self._jobs.put(job)
        return await future

    def stop(self) -> None:
        """Ends the thread as soon as it has nothing to do."""
        self._jobs.put(None)

    def is_alive(self) -> bool:
        """Whether the thread has not ended yet."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it holds the batch

"""Dynamic batching without a timer: the items that arrive during one inference form the next batch."""

import asyncio
import collections
import contextlib
import contextvars
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from app.inference.admission import Admission, Stopped

Item = TypeVar("Item")
Result = TypeVar("Result")

_FAILURE_THRESHOLD = 3  # batches in a row: fewer may be due to their inputs

logger = logging.getLogger(__name__)


class InferenceFailed(Exception):
    """The model could not compute the batch that this request was part of."""


@dataclasses.dataclass(frozen=True)
class Served(Generic[Result]):
    """A result, and when its item entered and left the queue, by `time.perf_counter`.

    `queued` is later by the time that the item's preparation took, so that only waits lie between the two.
    """

    result: Result
    queued: float
    dequeued: float

    @property
    def queue_seconds(self) -> float:
        """How long the item waited, for its preparation and for its batch."""
        return self.dequeued - self.queued


@dataclasses.dataclass(frozen=True)
class _Entry(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Served[Result]]
    queued: float  # as in `Served`

    def resolve(self, result: Result, started: float) -> None:
        if not self.future.done():
            self.future.set_result(Served(result, self.queued, started))

    def call_in_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        """Calls `callback` in the event loop that awaits the result; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self.future.get_loop().call_soon_threadsafe(callback, *arguments)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher(Generic[Item, Result]):
    """Runs `compute` over batches of queued items, first in, first out.

    `admission` admits at most `max_queue` items: those being prepared, queued and computed. Once it has retired and
    nothing is in progress, the batcher closes. Worker threads take batches themselves, and share a short queue, so that
    none idles while items wait. A batch holds only items of one `key`: that of the oldest item. Items of other keys
    keep their places in the queue, so that none starves.

    `compute` also gets whether its item is the only one in the batcher, and returns a result or an exception for each
    item, which `submit` then returns or raises. If `compute` raises, or takes longer than `timeout_seconds`,
    its whole batch fails, and no other. `on_drop` is called for each item that was cancelled while it waited. `prepare`
    runs in the caller's executor before an item is queued, without another turn of the event loop in between.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item], bool], Sequence[Result | Exception]],
        max_queue: int,
        timeout_seconds: float = 60.0,
        on_drop: Callable[[], object] = lambda: None,
        key: Callable[[Item], Hashable] = lambda item: None,
        prepare: Callable[[Item], Item] = lambda item: item,
    ) -> None:
        self._compute = compute
        self._instances = self._max_batch = 1  # until `run` sets them
        self.admission = Admission(max_queue, self.close)
        self._timeout_seconds = timeout_seconds
        self._on_drop = on_drop
        self._key = key
        self._prepare = prepare
        # guards the queue and the batches; workers take from the queue directly, and need no turn of the event loop
        self._changed = threading.Condition()
        self._queue: collections.deque[_Entry[Item, Result]] = collections.deque()
        self._unprepared: set[asyncio.Future[Served[Result]]] = set()  # of the items that wait for a preparer
        self._computing: dict[threading.Thread, _Batch[Item, Result]] = {}
        self._hung_threads: set[threading.Thread] = set()  # their batches have failed, or were abandoned
        self._batches_started = self._batches_finished = 0
        self._ended = asyncio.Event()
        self._watchdog: asyncio.TimerHandle | None = None
        self._failures = 0
        self.running = False

    @property
    def queued(self) -> int:
        """How many items wait, for their preparation or for the next batch, without those that were cancelled."""
        with self._changed:
            waiting = [*self._unprepared, *(entry.future for entry in self._queue)]
        return sum(not future.done() for future in waiting)

    @property
    def failing(self) -> bool:
        """Whether `_FAILURE_THRESHOLD` or more batches have failed in a row."""
        return self._failures >= _FAILURE_THRESHOLD

    @property
    def hanging(self) -> bool:
        """Whether so many threads hang that only a restart helps."""
        return sum(thread.is_alive() for thread in self._hung_threads) >= _FAILURE_THRESHOLD

    async def submit(self, item: Item, preparers: Executor | None = None) -> Served[Result]:
        """Computes an item, within a block of `admission.admit`; an item cancelled in the queue is not computed.

        `preparers` prepare it; without them it is queued unprepared. Raises `InferenceFailed`, `Stopped`, the item's
        exception from `compute`, and what `prepare` raises.
        """
        assert self.admission.in_flight, "no slot is held"
        self._check_open()
        loop = asyncio.get_running_loop()
        entry = _Entry[Item, Result](item, loop.create_future(), time.perf_counter())
        if preparers:
            self._unprepared.add(entry.future)
            preparers.submit(self._prepare_and_enqueue, entry)
        else:
            self._enqueue(entry)
        if self._watchdog is None:
            no_request = contextvars.Context()  # else its log lines would have the id of this one
            self._watchdog = loop.call_later(self._timeout_seconds, self._fail_hung_batches, context=no_request)
        return await entry.future

    async def run(self, instances: int, max_batch: int) -> None:
        """Computes in `instances` threads, up to `max_batch` items each, until `close`; finishes running batches."""
        self._instances, self._max_batch = instances, max_batch
        self.running = True
        try:
            for _ in range(self._instances):
                self._start_worker()
            await self._ended.wait()
        finally:
            self.running = False
            self.close()
            with self._changed:
                abandoned, self._computing = self._computing, {}  # not empty only if this task was cancelled
                self._hung_threads |= abandoned.keys()
            for batch in abandoned.values():
                for entry in batch.entries:
                    entry.fail(Stopped("the server is stopping"))

    def join_workers(self, timeout_seconds: float) -> None:
        """Waits for the threads whose batches were abandoned, at most about `timeout_seconds`."""
        until = time.perf_counter() + timeout_seconds
        for thread in self._hung_threads:
            thread.join(max(0.0, until - time.perf_counter()))

    def close(self) -> None:
        """Closes the admission, and fails the queued items with `Stopped`."""
        with self._changed:
            self.admission.closed = True
            stopped = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for entry in stopped:
            entry.fail(Stopped("the server is stopping"))
        self._end_if_drained()

    def _prepare_and_enqueue(self, entry: _Entry[Item, Result]) -> None:
        self._unprepared.discard(entry.future)
        if entry.future.done():
            self._on_drop()
            return
        try:
            self._check_open()
            started = time.perf_counter()
            item = self._prepare(entry.item)
            queued = entry.queued + time.perf_counter() - started
            self._enqueue(dataclasses.replace(entry, item=item, queued=queued))
        except Exception as error:
            entry.call_in_loop(entry.fail, error)

    def _enqueue(self, entry: _Entry[Item, Result]) -> None:
        with self._changed:
            self._check_open()
            self._queue.append(entry)
            self._changed.notify()

    def _check_open(self) -> None:
        if self.admission.closed:
            raise Stopped("the server is stopping")

    def _start_worker(self) -> None:
        # a daemon, so that a hung one does not keep the process alive
        threading.Thread(target=self._run_worker, name="inference", daemon=True).start()

    def _run_worker(self) -> None:
        """Takes and computes batches, and delivers them in the event loop, until the batcher is closed."""
        thread = threading.current_thread()
        while batch := self._take_batch(thread):
            outcome: Sequence[Result | Exception] | Exception
            try:
                outcome = self._compute([entry.item for entry in batch.entries], batch.is_alone)
            except Exception as error:
                outcome = error
            with self._changed:
                if self._computing.pop(thread, None) is None:  # it timed out, and this thread was replaced
                    return
            batch.entries[0].call_in_loop(self._deliver, batch, outcome, time.perf_counter())
            del batch, outcome

    def _take_batch(self, thread: threading.Thread) -> "_Batch[Item, Result] | None":
        """Waits for items and takes this thread's share of them; None once the batcher is closed."""
        with self._changed:
            while True:
                while not self._queue and not self.admission.closed:
                    self._changed.wait()
                if self.admission.closed:
                    return None
                idle = self._instances - len(self._computing)
                share = min(self._max_batch, math.ceil(len(self._queue) / idle))
                entries: list[_Entry[Item, Result]] = []
                others: list[_Entry[Item, Result]] = []
                while self._queue and len(entries) < share:
                    entry = self._queue.popleft()
                    if entry.future.done():  # its client disconnected, or its deadline passed
                        self._on_drop()
                    elif not entries or self._key(entry.item) == self._key(entries[0].item):
                        entries.append(entry)
                    else:
                        others.append(entry)
                self._queue.extendleft(reversed(others))
                if entries:
                    is_alone = len(entries) == 1 and not self._queue and not self._computing
                    self._batches_started += 1
                    batch = self._computing[thread] = _Batch(entries, is_alone, time.perf_counter())
                    return batch

    def _deliver(
        self, batch: "_Batch[Item, Result]", outcome: Sequence[Result | Exception] | Exception, ended: float
    ) -> None:
        """Resolves the futures of a computed batch; runs in the event loop."""
        self._batches_finished += 1
        if not isinstance(outcome, Exception) and len(outcome) != len(batch.entries):
            outcome = ValueError(f"{len(outcome)} results for {len(batch.entries)} items")
        if isinstance(outcome, Exception):
            self._fail_batch(batch, outcome, "the model could not compute this image")
        else:
            for entry, result in zip(batch.entries, outcome, strict=True):
                if isinstance(result, Exception):
                    entry.fail(result)
                else:
                    entry.resolve(result, batch.started)
            if not all(isinstance(result, Exception) for result in outcome):  # else the model has computed nothing
                self.admission.record_service_time((ended - batch.started) / len(outcome) / self._instances)
                self._failures = 0
        self._end_if_drained()

    def _fail_batch(self, batch: "_Batch[Item, Result]", error: Exception, message: str) -> None:
        self._failures += 1
        logger.error("a batch of %d failed: %s", len(batch.entries), message, exc_info=error)
        for entry in batch.entries:
            failure = InferenceFailed(message)
            failure.__cause__ = error
            entry.fail(failure)

    def _fail_hung_batches(self) -> None:
        """Fails batches that exceed the timeout and replaces their threads; runs again while items are in flight."""
        due = time.perf_counter() - self._timeout_seconds
        with self._changed:
            hanging = {thread: batch for thread, batch in self._computing.items() if batch.started <= due}
            for thread in hanging:
                del self._computing[thread]
            started = [batch.started for batch in self._computing.values()]
        self._hung_threads = {thread for thread in self._hung_threads if thread.is_alive()} | hanging.keys()
        for batch in hanging.values():
            self._batches_finished += 1
            self._fail_batch(batch, TimeoutError(), f"the model took longer than {self._timeout_seconds:g} s")
            self._start_worker()
        oldest = min(started, default=due + self._timeout_seconds)
        self._watchdog = None
        if self.admission.in_flight or started:
            self._watchdog = asyncio.get_running_loop().call_later(oldest - due, self._fail_hung_batches)
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self.admission.closed and self._batches_finished == self._batches_started:
            self._ended.set()


@dataclasses.dataclass(frozen=True)
class _Batch(Generic[Item, Result]):
    entries: list[_Entry[Item, Result]]
    is_alone: bool  # one item, and no other is queued or being computed
    started: float

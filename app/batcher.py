"""Turns single requests into batches, without a timer: what arrived during one run is the next batch."""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from app.admission import Admission, Arrival, Stopped

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_FAILURES = 3  # batches in a row: fewer may be the fault of what is in them

logger = logging.getLogger(__name__)


class InferenceFailed(Exception):
    """The model could not compute the batch that this request was part of."""


@dataclasses.dataclass(frozen=True)
class Served(Generic[Result]):
    """A result, and when its item came into the queue and left it, by `time.perf_counter`."""

    result: Result
    queued: float
    taken: float

    @property
    def queue_seconds(self) -> float:
        """How long it waited for its batch."""
        return self.taken - self.queued


@dataclasses.dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Served[Result]]
    since: float

    def resolve(self, result: Result, started: float) -> None:
        if not self.future.done():
            self.future.set_result(Served(result, self.since, started))

    def call_in_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        """Has the event loop that awaits the result call what must not be called in another thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self.future.get_loop().call_soon_threadsafe(callback, *arguments)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher(Generic[Item, Result]):
    """Runs `compute` over what has queued, first come, first served.

    No thread waits while there is something to do: a short queue is split among those that are idle. Only items of one
    `key` are computed together: the oldest and those like it, while the others keep their places, so that none starves.
    `admission` lets at most `max_queue` in at a time, so that the queue is bounded, and with it the memory of what
    happens before it; once it has retired and everybody has left, the batcher closes. `compute` is told whether its
    item is the only one in hand, and returns a result for each, or the exception that awaits who submitted it; where
    it raises, or takes longer than `timeout_seconds`, its whole batch fails, and no other. `on_drop` is called for each
    item whose request ended in the queue. `prepare` is what an item goes through beforehand in threads of others, from
    which it queues without another turn of the event loop; what it raises awaits who submitted the item.
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
        self._instances = self._max_batch = 1  # until `run` says
        self.admission = Admission(max_queue, self.close)
        self._timeout_seconds = timeout_seconds
        self._on_drop = on_drop
        self._key = key
        self._prepare = prepare
        self._changed = threading.Condition()  # guards what follows: threads take from it by themselves, so that none
        self._waiting: collections.deque[_Waiting[Item, Result]] = collections.deque()  # waits for a busy event loop
        self._computing: dict[threading.Thread, _Batch[Item, Result]] = {}
        self._left_behind: set[threading.Thread] = set()  # those that hang, whose batches have failed already
        self._handed_out = self._taken = 0  # batches
        self._ended = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self._failures = 0
        self.running = False

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
        return sum(thread.is_alive() for thread in self._left_behind) >= _MOST_FAILURES

    @contextlib.contextmanager
    def admit(
        self, places: int = 1, patience_seconds: float = math.inf, arrival: Arrival | None = None
    ) -> Iterator[Callable[[Item, Executor | None], Awaitable[Served[Result]]]]:
        """Holds places and gives the way to use them; raises what `Admission.admit` raises.

        It takes an item, and the threads that prepare it before it queues, or None where it queues as it is. Awaiting
        it raises `InferenceFailed`, `Stopped` or what `prepare` does; cancelled while queued, the item is not computed.
        """
        with self.admission.admit(places, patience_seconds, arrival):
            yield self._submit

    async def run(self, instances: int, max_batch: int) -> None:
        """Computes in `instances` threads, up to `max_batch` items each, until `close`; finishes what has begun."""
        self._instances, self._max_batch = instances, max_batch
        self.running = True
        try:
            for _ in range(self._instances):
                self._start_thread()
            await self._ended.wait()
        finally:
            self.running = False
            self.close()
            for batch in self._computing.values():  # only where this task was cancelled is there any
                for waiting in batch.waiting:
                    waiting.fail(Stopped("the server is stopping"))

    def close(self) -> None:
        """Closes the admission, and fails what is queued with `Stopped`."""
        with self._changed:
            self.admission.closed = True
            stopped = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for waiting in stopped:
            waiting.fail(Stopped("the server is stopping"))
        self._note_end()

    async def _submit(self, item: Item, preparers: Executor | None) -> Served[Result]:
        self._check_open()
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Item, Result](item, loop.create_future(), time.perf_counter())
        if preparers:
            preparers.submit(self._prepare_and_queue, waiting)
        else:
            self._queue(waiting)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_seconds, self._end_what_hangs)
        return await waiting.future

    def _prepare_and_queue(self, waiting: _Waiting[Item, Result]) -> None:
        if waiting.future.done():
            return
        try:
            self._check_open()
            item = self._prepare(waiting.item)
            self._queue(dataclasses.replace(waiting, item=item, since=time.perf_counter()))
        except Exception as error:
            waiting.call_in_loop(waiting.fail, error)

    def _queue(self, waiting: _Waiting[Item, Result]) -> None:
        with self._changed:
            self._check_open()
            self._waiting.append(waiting)
            self._changed.notify()

    def _check_open(self) -> None:
        if self.admission.closed:
            raise Stopped("the server is stopping")

    def _start_thread(self) -> None:
        # as a daemon: one that hangs does not keep the process
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    def _work(self) -> None:
        """What a thread does: takes a batch, computes it and has the event loop hand it out, until there is no more."""
        thread = threading.current_thread()
        while batch := self._take(thread):
            outcome: Sequence[Result | Exception] | Exception
            try:
                outcome = self._compute([waiting.item for waiting in batch.waiting], batch.is_alone)
            except Exception as error:
                outcome = error
            with self._changed:
                if self._computing.pop(thread, None) is None:  # it took too long, and was replaced
                    return
            batch.waiting[0].call_in_loop(self._hand_out, batch, outcome, time.perf_counter())
            del batch, outcome

    def _take(self, thread: threading.Thread) -> "_Batch[Item, Result] | None":
        """Waits for items and takes this thread's share of them; None when it is time to end."""
        with self._changed:
            while True:
                while not self._waiting and not self.admission.closed:
                    self._changed.wait()
                if self.admission.closed:
                    return None
                idle = self._instances - len(self._computing)
                share = min(self._max_batch, math.ceil(len(self._waiting) / idle))
                batch: list[_Waiting[Item, Result]] = []
                others: list[_Waiting[Item, Result]] = []
                while self._waiting and len(batch) < share:
                    waiting = self._waiting.popleft()
                    if waiting.future.done():  # its client has gone, or its time is up
                        self._on_drop()
                    elif not batch or self._key(waiting.item) == self._key(batch[0].item):
                        batch.append(waiting)
                    else:
                        others.append(waiting)
                self._waiting.extendleft(reversed(others))
                if batch:
                    is_alone = len(batch) == 1 and not self._waiting and not self._computing
                    self._taken += 1
                    taken = self._computing[thread] = _Batch(batch, is_alone, time.perf_counter())
                    return taken

    def _hand_out(
        self, batch: "_Batch[Item, Result]", outcome: Sequence[Result | Exception] | Exception, ended: float
    ) -> None:
        """Gives everybody what was computed, in the event loop."""
        self._handed_out += 1
        if not isinstance(outcome, Exception) and len(outcome) != len(batch.waiting):
            outcome = ValueError(f"{len(outcome)} results for {len(batch.waiting)} items")
        if isinstance(outcome, Exception):
            self._fail_batch(batch, outcome, "the model could not compute this image")
        else:
            for waiting, result in zip(batch.waiting, outcome, strict=True):
                if isinstance(result, Exception):
                    waiting.fail(result)
                else:
                    waiting.resolve(result, batch.started)
            self.admission.note_pace((ended - batch.started) / len(outcome) / self._instances)
            self._failures = 0
        self._note_end()

    def _fail_batch(self, batch: "_Batch[Item, Result]", error: Exception, message: str) -> None:
        self._failures += 1
        logger.error("a batch of %d failed: %s", len(batch.waiting), message, exc_info=error)
        for waiting in batch.waiting:
            failure = InferenceFailed(message)
            failure.__cause__ = error
            waiting.fail(failure)

    def _end_what_hangs(self) -> None:
        """Fails what takes too long and puts another thread in its place; looks again while anything is in hand."""
        due = time.perf_counter() - self._timeout_seconds
        with self._changed:
            hanging = {thread: batch for thread, batch in self._computing.items() if batch.started <= due}
            for thread in hanging:
                del self._computing[thread]
            begun = [batch.started for batch in self._computing.values()]
        self._left_behind = {thread for thread in self._left_behind if thread.is_alive()} | hanging.keys()
        for batch in hanging.values():
            self._handed_out += 1
            self._fail_batch(batch, TimeoutError(), f"the model took longer than {self._timeout_seconds:g} s")
            self._start_thread()
        oldest = min(begun, default=due + self._timeout_seconds)
        self._watch = None
        if self.admission.taken or begun:
            self._watch = asyncio.get_running_loop().call_later(oldest - due, self._end_what_hangs)
        self._note_end()

    def _note_end(self) -> None:
        if self.admission.closed and self._handed_out == self._taken:
            self._ended.set()


@dataclasses.dataclass(frozen=True)
class _Batch(Generic[Item, Result]):
    waiting: list[_Waiting[Item, Result]]
    is_alone: bool  # whether nothing else is in hand
    started: float

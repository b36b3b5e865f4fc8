"""Admission control for one model's queue."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

_ARRIVAL_SECONDS = 0.1  # for which an arrival counts; later it is taken for a slow upload, which must not block others


class Overloaded(Exception):
    """The queue is full or the wait too long; `retry_after_seconds` is when the client should try again."""

    def __init__(self, wait_seconds: float) -> None:
        self.wait_seconds = wait_seconds  # estimated, until everything ahead is computed
        self.retry_after_seconds = min(60, max(1, math.ceil(wait_seconds)))
        super().__init__(f"the server is busy; try again in {self.retry_after_seconds} s")


class Stopped(Exception):
    """The server is shutting down, or its inference has ended."""


class Arrival:
    """A request that has been announced and whose body is still being received, until `end`."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._refused_before = admission.refused
        admission.arriving[self] = time.perf_counter()

    def end(self) -> None:
        """Stops counting the request as arriving."""
        self._admission.arriving.pop(self, None)

    @property
    def others_were_refused(self) -> bool:
        """Whether any request has been refused since this one was announced."""
        return self._admission.refused > self._refused_before


class Admission:
    """Admits at most `capacity` items at a time, and refuses those that would probably time out in the queue.

    The wait is estimated from a moving average of the time per item. A request is refused if its wait is more than half
    of its timeout: the queue may slow down, and a request that expires in it wastes its slot. A request whose body is
    still arriving takes no slot, since the upload may be slow. But while half of the slots or more are taken, arrivals
    count for their first moments: so of a burst, no more bodies are received than there are slots. After `retire`,
    `on_drained` is called as soon as nothing is in progress.
    """

    def __init__(self, capacity: int, on_drained: Callable[[], object]) -> None:
        self._capacity = capacity
        self._on_drained = on_drained
        self.arriving: dict[Arrival, float] = {}  # when each was announced, oldest first
        self._seconds_per_item = 0.0
        self._in_progress = 0  # open blocks of `expect` and `admit`
        self._retired = False
        self.closed = False
        self.in_flight = 0  # slots taken
        self.refused = 0

    def announce(self, timeout_seconds: float = math.inf) -> Arrival:
        """Registers a request whose body is about to be received; raises `Overloaded` if it would be refused."""
        due = time.perf_counter() - _ARRIVAL_SECONDS
        while self.arriving and next(iter(self.arriving.values())) < due:
            del self.arriving[next(iter(self.arriving))]
        arriving = len(self.arriving) if 2 * self.in_flight >= self._capacity else 0
        self._check(1, timeout_seconds, arriving)
        return Arrival(self)

    @contextlib.contextmanager
    def expect(self, timeout_seconds: float = math.inf, arrival: Arrival | None = None) -> Iterator[Arrival]:
        """Counts a request as arriving during its block, in which its body is received; raises `Overloaded`, `Stopped`.

        Without an `arrival`, it announces the request first.
        """
        with self._count_in_progress():
            arrival = arrival or self.announce(timeout_seconds)
            try:
                yield arrival
            finally:
                arrival.end()

    @contextlib.contextmanager
    def admit(
        self, slots: int = 1, timeout_seconds: float = math.inf, arrival: Arrival | None = None
    ) -> Iterator[None]:
        """Holds slots during its block, and ends the request's `arrival`; raises `Overloaded` and `Stopped`."""
        with self._count_in_progress():
            if arrival:
                arrival.end()
            self._check(slots, timeout_seconds)
            self.in_flight += slots
            try:
                yield
            finally:
                self.in_flight -= slots

    def record_service_time(self, seconds_per_item: float) -> None:
        """Updates the moving average of the time per item, in which the new value has a weight of 0.1."""
        self._seconds_per_item += (seconds_per_item - self._seconds_per_item) * 0.1

    def retire(self) -> None:
        """Calls `on_drained` once nothing is in progress; refuses nothing until then."""
        self._retired = True
        if not self._in_progress:
            self._on_drained()

    def _check(self, slots: int, timeout_seconds: float, arriving: int = 0) -> None:
        ahead = self.in_flight + arriving
        wait = ahead * self._seconds_per_item
        if ahead + slots > self._capacity or 2 * wait > timeout_seconds:
            self.refused += 1
            raise Overloaded(wait)

    @contextlib.contextmanager
    def _count_in_progress(self) -> Iterator[None]:
        if self.closed:
            raise Stopped("the server is stopping")
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1
            if self._retired and not self._in_progress:
                self._on_drained()

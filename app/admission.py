"""Who is let into a model's queue, and who is told to come again."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

_ARRIVAL_SECONDS = 0.1  # for which what is on its way is counted on; what takes longer keeps nobody out


class Overloaded(Exception):
    """Every place is taken, or the wait too long; `retry_after_seconds` is when to come again."""

    def __init__(self, wait_seconds: float) -> None:
        self.wait_seconds = wait_seconds  # until all that is ahead is done, as it has gone of late
        self.retry_after_seconds = min(60, max(1, math.ceil(wait_seconds)))
        super().__init__(f"the server is busy; try again in {self.retry_after_seconds} s")


class Stopped(Exception):
    """The server is shutting down, or its inference has ended."""


class Arrival:
    """An item that is on its way, until `end`."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._refused = admission.refused
        admission.arriving[self] = time.perf_counter()

    def end(self) -> None:
        """Stops counting it as on its way."""
        self._admission.arriving.pop(self, None)

    @property
    def has_displaced(self) -> bool:
        """Whether somebody has been refused since it was announced."""
        return self._admission.refused > self._refused


class Admission:
    """The `places` in a queue: no more are taken at a time, so that it is bounded, and nobody takes one in vain.

    Nobody is let in whose wait, as it has gone of late, is more than half of `patience_seconds`: later ones may go
    slower, and what expires in the queue helps nobody. What is on its way holds no place, as it may be long in coming.
    But where half of the places are taken, it is counted on for its first moments, so that of a flood no more arrives
    in vain than there are places. After `retire`, `on_deserted` is called as soon as everybody has left.
    """

    def __init__(self, places: int, on_deserted: Callable[[], object]) -> None:
        self._places = places
        self._on_deserted = on_deserted
        self.arriving: dict[Arrival, float] = {}  # since when, the oldest first
        self._seconds_per_item = 0.0
        self._visitors = 0
        self._retired = False
        self.closed = False
        self.taken = 0
        self.refused = 0

    def announce(self, patience_seconds: float = math.inf) -> Arrival:
        """Notes that an item is on its way; raises `Overloaded` where it need not come."""
        due = time.perf_counter() - _ARRIVAL_SECONDS
        while self.arriving and next(iter(self.arriving.values())) < due:
            del self.arriving[next(iter(self.arriving))]
        arriving = len(self.arriving) if 2 * self.taken >= self._places else 0
        self._check(1, patience_seconds, arriving)
        return Arrival(self)

    @contextlib.contextmanager
    def expect(self, patience_seconds: float = math.inf, arrival: Arrival | None = None) -> Iterator[Arrival]:
        """Lets an item arrive, announced already where there is an `arrival`; raises `Overloaded`, `Stopped`."""
        with self._visit():
            arrival = arrival or self.announce(patience_seconds)
            try:
                yield arrival
            finally:
                arrival.end()

    @contextlib.contextmanager
    def admit(
        self, places: int = 1, patience_seconds: float = math.inf, arrival: Arrival | None = None
    ) -> Iterator[None]:
        """Holds places, of what has arrived where there is an `arrival`; raises `Overloaded`, `Stopped`."""
        with self._visit():
            if arrival:
                arrival.end()
            self._check(places, patience_seconds)
            self.taken += places
            try:
                yield
            finally:
                self.taken -= places

    def note_pace(self, seconds_per_item: float) -> None:
        """Updates the moving average of the seconds that an item takes; the new one weighs a tenth."""
        self._seconds_per_item += (seconds_per_item - self._seconds_per_item) * 0.1

    def retire(self) -> None:
        """Waits for who is here, and sends nobody away."""
        self._retired = True
        if not self._visitors:
            self._on_deserted()

    def _check(self, places: int, patience_seconds: float, arriving: int = 0) -> None:
        ahead = self.taken + arriving
        wait = ahead * self._seconds_per_item
        if ahead + places > self._places or 2 * wait > patience_seconds:
            self.refused += 1
            raise Overloaded(wait)

    @contextlib.contextmanager
    def _visit(self) -> Iterator[None]:
        if self.closed:
            raise Stopped("the server is stopping")
        self._visitors += 1
        try:
            yield
        finally:
            self._visitors -= 1
            if self._retired and not self._visitors:
                self._on_deserted()

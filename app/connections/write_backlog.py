"""Limits on responses that slow readers leave in write buffers: seconds for each, and bytes for all together."""

import asyncio
from typing import Protocol

from app.settings import Settings


class SlowReader(Exception):
    """The client took too long to read its response; it gets no other."""


class Writer(Protocol):
    """A connection with unsent bytes in its write buffer."""

    def count_unsent(self) -> int:
        """Returns the bytes in its write buffer."""

    def abort(self, error: SlowReader) -> None:
        """Closes the connection at once."""


class WriteBacklog:
    """The connections of an event loop that have unsent responses, the longest waiting first."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_seconds = settings.answer_timeout_seconds
        self._max_bytes = settings.max_held_bytes
        self._timers: dict[Writer, asyncio.TimerHandle] = {}

    def add(self, writer: Writer) -> None:
        """Starts a connection's timeout; aborts the longest waiting ones while all together exceed the bytes."""
        error = SlowReader(f"the client did not read the response within {self._timeout_seconds:g} s")
        loop = asyncio.get_running_loop()
        self._timers[writer] = loop.call_later(self._timeout_seconds, self._abort, writer, error)
        sizes = {each: each.count_unsent() for each in self._timers}
        excess = sum(sizes.values()) - self._max_bytes
        for each, size in sizes.items():
            if excess <= 0:
                break
            self._abort(each, SlowReader("too many bytes of responses are unread"))
            excess -= size

    def remove(self, writer: Writer) -> None:
        """Removes a connection whose write buffer is empty, or that is closed."""
        if timer := self._timers.pop(writer, None):
            timer.cancel()

    def _abort(self, writer: Writer, error: SlowReader) -> None:
        self.remove(writer)
        writer.abort(error)

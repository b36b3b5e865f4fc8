"""Load shedding: requests that would not fit into the queue are refused before the HTTP parser and the app see them.

Under heavy overload, the CPU time that refusals cost is lost to the model; refused here, a request costs little.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

from app.connections.client_socket import HAS_LOW_WATER_MARK
from app.connections.request_head import Headers, PlainHead
from app.inference.admission import Arrival, Overloaded

_MAX_PAUSE_SECONDS = 0.25
_PAUSED_BYTES = 256 * 1024  # that a paused client may send before it wakes the event loop after all


class Pausable(Protocol):
    """A connection that has been answered and can be paused."""

    def flush_refusal(self) -> None:
        """Sends the deferred refusal."""

    def set_low_water_mark(self, min_bytes: int) -> None:
        """Wakes the event loop only once the client has sent `min_bytes`, or disconnected."""

    def read_available(self) -> None:
        """Handles what the client has sent."""


class LoadShedder:
    """Announces each incoming image to its model, and pauses the clients that are refused.

    `paths` are those that take images; `announce` gets a request's query and headers, and raises `Overloaded`.
    """

    def __init__(self, paths: Collection[str], announce: Callable[[bytes, Headers], Arrival | None]) -> None:
        self._paths = paths
        self._announce = announce
        self._overloads: dict[PlainHead, Overloaded] = {}
        self._paused: dict[Pausable, None] = {}
        self._unflushed: list[Pausable] = []

    def announce(self, head: PlainHead) -> Arrival | None:
        """Announces the request if its path takes images; raises `Overloaded` if it is to be refused."""
        if head.path not in self._paths:
            return None
        if overload := self._overloads.get(head):
            raise overload.with_traceback(None)
        try:
            return self._announce(head.query, head.headers)
        except Overloaded as overload:
            if not self._overloads:
                asyncio.get_running_loop().call_soon(self._overloads.clear)
            self._overloads[head] = overload  # same head, same refusal, for the rest of this turn of the event loop
            raise

    def flush_soon(self, connection: Pausable) -> None:
        """Sends refusals back to back: each by itself would wake the CPU of its reader, which takes long."""
        if not self._unflushed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unflushed.append(connection)

    def _flush(self) -> None:
        unflushed, self._unflushed = self._unflushed, []
        for connection in unflushed:
            connection.flush_refusal()

    def pause(self, connection: Pausable, wait_seconds: float) -> None:
        """Stops reading from a refused client for a moment, which is too short for the queue to run empty.

        All paused connections are then read together: that costs less than to wake the event loop for each, with cold
        caches. Where the system has no low-water mark, nothing is paused.
        """
        if not HAS_LOW_WATER_MARK:
            return
        if not self._paused:
            asyncio.get_running_loop().call_later(min(_MAX_PAUSE_SECONDS, wait_seconds / 2), self._read_paused)
        self._pause(connection)

    def pause_with_others(self, connection: Pausable) -> None:
        """Pauses the connection if others are paused, and reads it together with them."""
        if self._paused:
            self._pause(connection)

    def _pause(self, connection: Pausable) -> None:
        self._paused[connection] = None
        connection.set_low_water_mark(_PAUSED_BYTES)

    def _read_paused(self) -> None:
        paused, self._paused = self._paused, {}
        for connection in paused:
            # a callback each, so that an exception in one does not affect the others
            asyncio.get_running_loop().call_soon(self._read, connection)

    def _read(self, connection: Pausable) -> None:
        try:
            connection.read_available()
        finally:
            if connection not in self._paused:
                connection.set_low_water_mark(1)

"""Bounds on answers that slow readers have not taken: the seconds of each, and the bytes of all together."""

import asyncio
from typing import Protocol

from app.settings import Settings


class SlowReader(Exception):
    """The client took too long to take its answer; it gets no other."""


class Client(Protocol):
    """Who has yet to take an answer: a connection."""

    def count_untaken(self) -> int:
        """Bytes that it has yet to take."""

    def cut_off(self, error: SlowReader) -> None:
        """Ends the connection at once."""


class UntakenAnswers:
    """Those of an event loop's clients, the one that has been left the longest first."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_seconds = settings.answer_timeout_seconds
        self._max_bytes = settings.max_held_bytes
        self._timers: dict[Client, asyncio.TimerHandle] = {}

    def add(self, client: Client) -> None:
        """Bounds the time of one, and cuts off who has left theirs the longest where all are too many bytes."""
        error = SlowReader(f"the answer was not taken within {self._timeout_seconds:g} s")
        loop = asyncio.get_running_loop()
        self._timers[client] = loop.call_later(self._timeout_seconds, self._cut_off, client, error)
        sizes = {each: each.count_untaken() for each in self._timers}
        excess = sum(sizes.values()) - self._max_bytes
        for each, size in sizes.items():
            if excess <= 0:
                break
            self._cut_off(each, SlowReader("too many answers are not taken"))
            excess -= size

    def remove(self, client: Client) -> None:
        """Notes that the client has taken its answer, or is gone."""
        if timer := self._timers.pop(client, None):
            timer.cancel()

    def _cut_off(self, client: Client, error: SlowReader) -> None:
        self.remove(client)
        client.cut_off(error)

"""A client's connection: uvicorn's, with bounds on what slow clients, and many of them, can hold."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.admission import Arrival, Overloaded
from app.metrics import Metrics
from app.request_id import HEADER, identified
from app.settings import Settings

_REQUEST_ID = HEADER.lower().encode()

logger = logging.getLogger(__name__)


class InvalidRequest(Exception):
    """What the client sends is no HTTP."""


class HeadTooLarge(Exception):
    """A request's line and headers have more bytes than allowed."""


class SlowHead(Exception):
    """A request's line and headers took too long to arrive."""


class SlowReader(Exception):
    """The client took too long to take its answer; it gets no other."""


class TooManyConnections(Exception):
    """All connections are taken; `retry_after_seconds` is when one should be free."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"all connections are taken; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


@dataclasses.dataclass(frozen=True)
class Door:
    """Which paths take pictures, and what is told of one that comes: its query and headers.

    `announce` raises `Overloaded` where the picture need not come.
    """

    paths: Collection[str]
    announce: Callable[[bytes, Iterable[tuple[bytes, bytes]]], Arrival | None]


class Connection(HttpToolsProtocol):
    """One client's connection; `respond` makes the answer to an exception, and counts it.

    Where every place is taken, pictures are refused here, at the `door`, before the app hears of them: what is refused
    in plenty must cost little.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        respond: Callable[[Exception], Response],
        door: Door,
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._metrics = metrics
        self._respond = respond
        self._door = door
        self._surplus = False
        self._arrival: Arrival | None = None
        self._head_left: int | None = settings.max_header_bytes  # None where no head is awaited
        self._padding = 0  # bytes of a body that are neither its content nor the usual frame of its chunks
        self._request_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._metrics.connections.inc()
        self._surplus = len(self.connections) > self._settings.max_connections
        if len(self.connections) > 2 * self._settings.max_connections:  # too many to be told
            transport.abort()
            return
        transport.set_write_buffer_limits(0)  # `pause_writing` is then called whenever anything waits to be taken
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        self._metrics.connections.dec()
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on, but no longer a head than allowed."""
        if self._surplus:  # only now: to close on what was not read would tear the answer from the client's hands
            self._refuse(TooManyConnections(1))
            return
        if self._head_left is not None:
            self._await_request()
        rest: Any = memoryview(data)  # parts of it are no copies
        while rest and self._head_left is not None and not self.transport.is_closing():
            part, rest = rest[: self._head_left], rest[self._head_left :]
            self._head_left -= len(part)
            super().data_received(part)
            if self._head_left == 0:
                self._refuse(HeadTooLarge(f"the head has more than {self._settings.max_header_bytes} bytes"))
        if rest and not self.transport.is_closing():
            self._padding += len(rest)
            super().data_received(rest)
            if self._padding > self._settings.max_header_bytes:
                self._refuse(HeadTooLarge("too many bytes around those of the body"))

    def on_headers_complete(self) -> None:
        """Hands the request over to the app, or refuses it."""
        self._head_left = None
        self._padding = 0
        self._stop_waiting()
        raw_path, _, query = self.url.partition(b"?")
        path = raw_path.decode("latin-1")
        if path in self._door.paths and self._may_refuse():
            try:
                self._arrival = self.scope["state"]["arrival"] = self._door.announce(query, self.headers)
            except Overloaded as overload:
                self._refuse_at_door(path, overload)
                return
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a header; not what may follow a body, since nobody reads that."""
        if self._head_left is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Hands a part of the body over."""
        self._padding = max(0, self._padding - 16 * len(body))  # what chunks of one byte may cost
        if self.cycle:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expects the next head."""
        self._head_left = self._settings.max_header_bytes
        self._padding = 0
        self._stop_waiting()
        if self.cycle:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of one that was answered before it was all there."""
        super().on_response_complete()
        if self._arrival:  # the app may have refused it unseen
            self._arrival.end()
        if self._head_left is None and self._is_answered and not self.transport.is_closing():
            self._await_request()

    def send_400_response(self, msg: str) -> None:
        """Refuses what the parser does not understand."""
        self._refuse(InvalidRequest("send HTTP/1.1"))

    def pause_writing(self) -> None:
        """Notes that the client has yet to take what was sent."""
        super().pause_writing()
        seconds = self._settings.answer_timeout_seconds
        self._answer_timer = self.loop.call_later(
            seconds, self._cut_off, f"the answer was not taken within {seconds:g} s"
        )
        self._make_room()

    def resume_writing(self) -> None:
        """Notes that the client has taken it all."""
        super().resume_writing()
        if self._answer_timer:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _await_request(self) -> None:
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(self._settings.header_timeout_seconds, self._stop_request)

    def _stop_waiting(self) -> None:
        if self._request_timer:
            self._request_timer.cancel()
            self._request_timer = None

    def _stop_request(self) -> None:
        self._request_timer = None
        if not self._is_answered:  # it is the next request that is slow; this one goes on
            self._await_request()
        elif self._head_left in (None, self._settings.max_header_bytes):  # answered already, or nothing was asked
            self.transport.close()
        else:
            seconds = self._settings.header_timeout_seconds
            self._refuse(SlowHead(f"the head did not arrive within {seconds:g} s"))

    def _make_room(self) -> None:
        """Cuts off those who have left their answers the longest, where all that waits is too much for the memory."""
        waiting = [
            (each._answer_timer.when(), each.transport.get_write_buffer_size(), each)
            for each in self.connections
            if isinstance(each, Connection) and each._answer_timer
        ]
        excess = sum(size for _, size, _ in waiting) - self._settings.max_held_bytes
        for _, size, connection in sorted(waiting, key=lambda each: each[0]):
            if excess <= 0:
                break
            connection._cut_off("too many answers are not taken")
            excess -= size

    def _cut_off(self, reason: str) -> None:
        self._describe(SlowReader(reason))
        self.transport.abort()

    def _refuse(self, error: Exception) -> None:
        """Answers, unless another answer is on its way, and closes."""
        answer = self._describe(error, [(b"connection", b"close")])
        if self._is_answered or not self.cycle.response_started:
            self.transport.write(answer)
        self.transport.close()

    @property
    def _is_answered(self) -> bool:
        """Whether there is no request, or none that waits for more of its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _may_refuse(self) -> bool:
        """Whether the app has nothing to add to a refusal, and the connection goes on as usual."""
        usual = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
        is_plain = usual and not self.parser.should_upgrade() and not self.expect_100_continue
        is_from_page = any(name == b"origin" for name, _ in self.headers)  # of elsewhere: CORS is the app's
        return self._is_answered and self.parser.get_method() == b"POST" and is_plain and not is_from_page

    def _refuse_at_door(self, path: str, overload: Overloaded) -> None:
        """Answers at once, and has the body come to nothing."""
        sent = next((value for name, value in self.headers if name == _REQUEST_ID), b"")
        self.cycle = None  # type: ignore[assignment]
        self.transport.write(self._describe(overload, sent_id=sent.decode("latin-1")))
        self._metrics.requests.labels(path, "POST", 503).inc()
        self._metrics.request_seconds.labels(path).observe(0)
        self.on_response_complete()

    def _describe(self, error: Exception, extra: Sequence[tuple[bytes, bytes]] = (), sent_id: str = "") -> bytes:
        with identified(sent_id) as request_id:
            response = self._respond(error)
            logger.info("%s: %d %s", self.client[0] if self.client else "", response.status_code, error)
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (_REQUEST_ID, request_id.encode()),
            *extra,
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        return b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body])

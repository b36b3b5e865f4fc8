"""A client's connection: uvicorn's, with bounds on what slow clients, and many of them, can hold."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.admission import Arrival, Overloaded
from app.door import Door, PlainHead, read_plain_head
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


class Connection(HttpToolsProtocol):
    """One client's connection; `respond` makes the answer to an exception, and counts it.

    Pictures for which there is no place are refused at the `door`.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        respond: Callable[[Exception], tuple[int, bytes]],
        door: Door,
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._metrics = metrics
        self._respond = respond
        self._door = door
        self._socket: socket.socket | None = None  # a second handle: the transport's own is slow
        self._surplus = False
        self._arrival: Arrival | None = None
        self._head_left: int | None = settings.max_header_bytes  # None where no head is awaited
        self._refusal = b""  # that is not sent yet
        self._refused_left = 0  # bytes of a body that was refused at the door, yet to come
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
        own = transport.get_extra_info("socket")
        self._socket = socket.socket(own.family, own.type, own.proto, own.fileno())
        transport.set_write_buffer_limits(0)  # `pause_writing` is then called whenever anything waits to be taken
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        self._metrics.connections.dec()
        if self._socket:
            self._socket.detach()  # the transport closes it
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on: drops what was refused, asks at the door for what begins, and has the rest parsed."""
        if self._surplus:  # only now: to close on what was not read would tear the answer from the client's hands
            self._refuse(TooManyConnections(1))
            return
        read = 0
        while read < len(data) and not self.transport.is_closing():
            read += self._drop(data, read) or self._ask_at_door(data, read) or self._parse(data, read)
        self._bound_rest()

    def _drop(self, data: bytes, start: int) -> int:
        """Counts down a body that was refused; returns how many of the bytes were its."""
        dropped = min(len(data) - start, self._refused_left)
        self._refused_left -= dropped
        return dropped

    def _ask_at_door(self, data: bytes, start: int) -> int:
        """Announces a picture that comes; returns its head's size where it was refused, 0 where it is to be parsed."""
        most = self._settings.max_header_bytes
        head = read_plain_head(data, start, start + most) if self._head_left == most and self._is_answered else None
        if not head or head.path not in self._door.paths:
            return 0
        try:
            self._arrival = self._door.announce(head.query, head.headers)
        except Overloaded as overload:
            self._refuse_at_door(head, overload)
            return head.size
        return 0

    def _parse(self, data: bytes, start: int) -> int:
        """Has bytes parsed, but no longer a head than allowed; returns how many."""
        self._send_refusal()  # what is answered next comes after it
        part: Any = memoryview(data)[start:]  # no copy
        if self._head_left is None:
            self._padding += len(part)
            super().data_received(part)
            if self._padding > self._settings.max_header_bytes:
                self._refuse(HeadTooLarge("too many bytes around those of the body"))
        else:
            part = part[: self._head_left]
            self._head_left -= len(part)
            super().data_received(part)
            if self._head_left == 0:
                self._refuse(HeadTooLarge(f"the head has more than {self._settings.max_header_bytes} bytes"))
        return len(part)

    def on_headers_complete(self) -> None:
        """Hands the request over to the app."""
        self._head_left = None
        self._padding = 0
        self._stop_waiting()
        if self._arrival and self._is_answered:  # there is none before it
            self.scope["state"]["arrival"] = self._arrival
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a header; not what may follow a body, since nobody reads that."""
        if self._head_left is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Hands a part of the body over."""
        self._padding = max(0, self._padding - 16 * len(body))  # what chunks of one byte may cost
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expects the next head."""
        self._head_left = self._settings.max_header_bytes
        self._padding = 0
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of one that was answered before it was all there."""
        super().on_response_complete()
        if self._arrival:  # the app may have refused it unseen
            self._arrival.end()
            self._arrival = None
        self._bound_rest()

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

    def _bound_rest(self) -> None:
        """Bounds the wait for the rest of a head, or of a body that nobody takes; ends it where none is to come."""
        if self._head_left is None:
            is_owed = self._is_answered
        else:
            is_owed = self._refused_left > 0 or self._head_left < self._settings.max_header_bytes
        if is_owed and not self.transport.is_closing():
            self._await_request()
        else:
            self._stop_waiting()

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

    def _refuse_at_door(self, head: PlainHead, overload: Overloaded) -> None:
        """Answers at once, and has the body come to nothing."""
        sent = next((value for name, value in head.headers if name == _REQUEST_ID), b"")
        self._send_refusal()
        self._refusal = self._describe(overload, sent_id=sent.decode("latin-1"))
        self._door.send_soon(self._send_refusal)
        self._metrics.requests.labels(head.path, "POST", 503).inc()
        self._metrics.request_seconds.labels(head.path).observe(0)
        self._refused_left = head.body_size
        self._stop_waiting()
        super().on_response_complete()
        if self._socket:
            self._door.hold(self._socket, overload.wait_seconds)

    def _send_refusal(self) -> None:
        if self._refusal and not self.transport.is_closing():
            self.transport.write(self._refusal)
        self._refusal = b""

    def _describe(self, error: Exception, extra: Sequence[tuple[bytes, bytes]] = (), sent_id: str = "") -> bytes:
        with identified(sent_id) as request_id:
            status, rest = self._respond(error)
            logger.info("%s: %d %s", self.client[0] if self.client else "", status, error)
        headers = [*self.server_state.default_headers, (_REQUEST_ID, request_id.encode()), *extra]
        return b"".join([STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers], rest])

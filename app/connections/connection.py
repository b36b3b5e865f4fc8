"""A client's connection: uvicorn's, with bounds on what slow clients, and many of them, can hold."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.admission import Arrival, Overloaded
from app.connections.client_socket import ClientSocket
from app.connections.door import Door, PlainHead, read_plain_head
from app.connections.untaken import SlowReader, UntakenAnswers
from app.disconnect import HUNG_UP
from app.metrics import Metrics
from app.request_id import RAW_HEADER, request_id_context
from app.settings import Settings

_CLOSE = ((b"connection", b"close"),)
_UPGRADE = re.compile(rb"\r\n([Uu][Pp][Gg][Rr][Aa][Dd][Ee])[ \t]*:")
_HEAD_END = re.compile(rb"\r\n\r\n")
_HEAD_BYTES = 4 * 1024  # of most heads; longer ones take more than one read

logger = logging.getLogger(__name__)


class InvalidRequest(Exception):
    """What the client sends is no HTTP."""


class HeadTooLarge(Exception):
    """A request's line and headers have more bytes than allowed."""


class SlowHead(Exception):
    """A request's line and headers took too long to arrive."""


class TooManyConnections(Exception):
    """All connections are taken; `retry_after_seconds` is when one should be free."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"all connections are taken; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Buffered(asyncio.BufferedProtocol):
    """Passes a transport's calls on: it reads into the buffer only of what is no `Protocol`, as uvicorn's is."""

    def __init__(self, connection: "Connection") -> None:
        for name in ("connection_made", "connection_lost", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(connection, name))
        for name in ("get_buffer", "buffer_updated", "eof_received"):
            setattr(self, name, getattr(connection, name))


class Connection(HttpToolsProtocol):
    """One client's connection; `respond` makes the answer to an exception, and counts it.

    Pictures for which there is no place are refused at the `door`. All connections of an event loop share it, the bound
    on `untaken` answers, and the `buffer` that they read to: what was read is dealt with at once.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        respond: Callable[[Exception], tuple[int, bytes]],
        door: Door,
        untaken: UntakenAnswers,
        buffer: memoryview,
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._metrics = metrics
        self._respond = respond
        self._door = door
        self._untaken = untaken
        self._buffer = buffer
        self._socket: ClientSocket | None = None
        self._is_surplus = False
        self._is_last = False  # is the next answer
        self._arrival: Arrival | None = None
        self._head_left: int | None = settings.max_header_bytes  # None where no head is awaited
        self._refusal = b""  # that is not sent yet
        self._refused_left = 0  # bytes of a body that was refused at the door, yet to come
        self._padding = 0  # bytes of a body that are neither its content nor the usual frame of its chunks
        self._request_timer: asyncio.TimerHandle | None = None
        self._hung_up: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._metrics.connections.inc()
        self._is_surplus = len(self.connections) > self._settings.max_connections
        if len(self.connections) > 2 * self._settings.max_connections:  # too many to be told
            transport.abort()
            return
        self._socket = ClientSocket(transport, self._buffer)
        transport.set_write_buffer_limits(0)  # `pause_writing` is then called whenever anything waits to be taken
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers, and ends what is done for this client."""
        self._metrics.connections.dec()
        if self._socket:
            self._socket.detach()
            self._socket = None
        self._stop_waiting()
        self._hung_up.set_result(None)
        self.resume_writing()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Returns the buffer to read into: a small one where a head is awaited, since the body may be refused."""
        return self._buffer if self._head_left is None else self._buffer[:_HEAD_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Reads on: drops what was refused, asks at the door for what begins, and has the rest parsed."""
        if self._is_surplus:  # only now: to close on what was not read would tear the answer from the client's hands
            self._refuse(TooManyConnections(1))
            return
        data = self._buffer[:nbytes]
        read = 0
        while read < nbytes and not self.transport.is_closing():
            read += self._drop(nbytes - read) or self._ask_at_door(data, read) or self._parse(data, read)
        if self._refused_left and self._socket:
            self._refused_left -= self._socket.skip(self._refused_left)
        self._bound_rest()

    def _drop(self, most: int) -> int:
        """Counts down a body that was refused; returns how many of the bytes were its."""
        dropped = min(most, self._refused_left)
        self._refused_left -= dropped
        return dropped

    def _ask_at_door(self, data: memoryview, start: int) -> int:
        """Announces a picture that comes; returns its head's size where it was refused, 0 where it is to be parsed."""
        most = self._settings.max_header_bytes
        head = read_plain_head(data, start, start + most) if self._is_idle else None
        if not head:
            return 0
        try:
            self._arrival = self._door.ask(head)
        except Overloaded as overload:
            self._refuse_at_door(head, overload)
            return head.size
        return 0

    def _parse(self, data: memoryview, start: int) -> int:
        """Has bytes parsed, but no longer a head than allowed; returns how many."""
        self.send_answer()  # what is answered next comes after it
        part: Any = data[start:]  # uvicorn says bytes, and hands it to the parser, which takes any buffer
        if self._head_left is None:
            self._padding += len(part)
            self.data_received(part)
            if self._padding > self._settings.max_header_bytes:
                self._refuse(HeadTooLarge("too many bytes around those of the body"))
        else:
            part = part[: self._head_left]
            _ignore_offer(part)
            self._head_left -= len(part)
            self.data_received(part)
            if self._head_left == 0:
                self._refuse(HeadTooLarge(f"the head has more than {self._settings.max_header_bytes} bytes"))
        return len(part)

    def on_headers_complete(self) -> None:
        """Hands the request over to the app."""
        self._head_left = None
        self._padding = 0
        self._stop_waiting()
        if self.parser.should_upgrade():  # an offer that came in two reads, or a proxy is asked for
            self._refuse(InvalidRequest("send HTTP/1.1, and do not offer another protocol"))
            return
        self.scope["state"][HUNG_UP] = self._hung_up
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
            if self._arrival.has_displaced:
                self._door.hold_too(self)
            self._arrival = None
        self._bound_rest()

    def send_400_response(self, msg: str) -> None:
        """Refuses what the parser does not understand."""
        self._refuse(InvalidRequest("send HTTP/1.1, and in the address percent-encode what is not ASCII"))

    def shutdown(self) -> None:
        """Hears what the client has sent by now, and closes as soon as it has its answer."""
        self._is_last = True
        self.hear()
        self.send_answer()
        super().shutdown()

    def pause_writing(self) -> None:
        """Notes that the client has yet to take what was sent."""
        super().pause_writing()
        self._untaken.add(self)

    def resume_writing(self) -> None:
        """Notes that the client has taken it all."""
        super().resume_writing()
        self._untaken.remove(self)

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

    def _refuse(self, error: Exception) -> None:
        """Answers, unless another answer is on its way, and closes."""
        status, answer = self._describe(error, _CLOSE)
        if self._is_answered or not self.cycle.response_started:
            self.transport.write(answer)
        if self._is_answered:  # else the app counts
            self._metrics.requests.labels("unmatched", "other", status).inc()
        self.transport.close()

    @property
    def _is_idle(self) -> bool:
        """Whether nothing is asked, or has begun to be."""
        return self._head_left == self._settings.max_header_bytes and self._is_answered

    @property
    def _is_answered(self) -> bool:
        """Whether there is no request, or none that waits for more of its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse_at_door(self, head: PlainHead, overload: Overloaded) -> None:
        """Answers at once, and has the body come to nothing."""
        self.send_answer()
        status, self._refusal = self._describe(overload, _CLOSE if self._is_last else (), head.request_id)
        self._door.send_soon(self)
        self._metrics.requests.labels(head.path, "POST", status).inc()
        self._metrics.request_seconds.labels(head.path).observe(0)
        self._refused_left = head.body_size
        self._stop_waiting()
        self._unset_keepalive_if_required()
        self._door.hold(self, overload.wait_seconds)

    def send_answer(self) -> None:
        """Sends the refusal that was put off, if any."""
        if self._refusal and not self.transport.is_closing():
            self.transport.write(self._refusal)
        self._refusal = b""

    def await_bytes(self, least: int) -> None:
        """Has the event loop not wake for the client before it has sent so many bytes, or hung up."""
        if self._socket:
            self._socket.await_bytes(least)

    def hear(self) -> None:
        """Deals with what the client has sent, without the event loop."""
        if self._socket and (count := self._socket.read(_HEAD_BYTES)):
            self.buffer_updated(count)

    def release(self) -> None:
        """Closes the connection if no request comes for long."""
        if self._is_idle and self.timeout_keep_alive_task is None:
            super().on_response_complete()

    def count_untaken(self) -> int:
        """Bytes of answers that the client has yet to take."""
        return self.transport.get_write_buffer_size()

    def cut_off(self, error: SlowReader) -> None:
        """Ends the connection at once."""
        self._describe(error)
        self.transport.abort()

    def _describe(
        self, error: Exception, extra: Sequence[tuple[bytes, bytes]] = (), sent_id: str = ""
    ) -> tuple[int, bytes]:
        """Returns an answer and its status; counts and logs it."""
        # of these there are thousands a second, just when the log is needed for the rest
        level = logging.DEBUG if isinstance(error, Overloaded | TooManyConnections) else logging.INFO
        with request_id_context(sent_id) as request_id:
            status, rest = self._respond(error)
            logger.log(level, "%s: %d %s", self.client[0] if self.client else "", status, error)
        headers = [*self.server_state.default_headers, (RAW_HEADER, request_id.encode()), *extra]
        return status, b"".join([STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers], rest])


def _ignore_offer(part: memoryview) -> None:
    """Renames a head's offer to upgrade, as Java's client and curl send beside a body: the parser would end there.

    A server may ignore it (RFC 9110, section 7.8).
    """
    end = _HEAD_END.search(part)
    for offer in _UPGRADE.finditer(part, 0, end.start() if end else len(part)):
        part[offer.start(1) : offer.end(1)] = b"offered"

"""A client's connection: uvicorn's HTTP protocol, with limits on slow and greedy clients, and with load shedding."""

import asyncio
import logging
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.connections.client_socket import ClientSocket
from app.connections.exceptions import HeadTooLarge, InvalidRequest, SlowHead, TooManyConnections
from app.connections.load_shedding import LoadShedder
from app.connections.request_head import PlainHead, mask_upgrade, read_plain_head
from app.connections.write_backlog import SlowReader, WriteBacklog
from app.errors import choose_log_level
from app.inference.admission import Arrival, Overloaded
from app.requests.disconnect import DISCONNECTED
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.telemetry.request_id import RAW_HEADER, request_id_context

_CLOSE = ((b"connection", b"close"),)
_HEAD_BYTES = 4 * 1024  # enough for most heads; longer ones take more than one read

logger = logging.getLogger(__name__)


class BufferedAdapter(asyncio.BufferedProtocol):
    """Passes a transport's calls on to a `Connection`.

    A transport reads into `get_buffer` only if its protocol is no `asyncio.Protocol`, and uvicorn's class is one.
    """

    def __init__(self, connection: "Connection") -> None:
        for name in ("connection_made", "connection_lost", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(connection, name))
        for name in ("get_buffer", "buffer_updated", "eof_received"):
            setattr(self, name, getattr(connection, name))


class PipelineFlowControl(FlowControl):
    """Reads no further while pipelined requests wait, of which uvicorn would read more with each response."""

    def __init__(self, transport: asyncio.Transport, pipeline: Collection[object]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Resumes reading, unless requests wait."""
        if not self._pipeline:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """One client's connection; `respond` turns an exception into a response, and counts it.

    All connections of an event loop share the load `shedder`, the write `backlog`, and the `buffer` that they read
    into: what has been read is handled at once.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        respond: Callable[[Exception], tuple[int, bytes]],
        shedder: LoadShedder,
        backlog: WriteBacklog,
        buffer: memoryview,
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._metrics = metrics
        self._respond = respond
        self._shedder = shedder
        self._backlog = backlog
        self._buffer = buffer
        self._socket: ClientSocket | None = None
        self._is_over_limit = False
        self._is_shutting_down = False  # the next response is the last
        self._is_lingering = False  # the last response is sent, and what the client still sends is discarded
        self._arrival: Arrival | None = None
        self._head_bytes_left: int | None = settings.max_header_bytes  # None while a body is read
        self._refusal = b""  # a response that has not been sent yet
        self._bytes_to_discard = 0  # of the body of a request that was shed
        self._overhead_bytes = 0  # of a body: chunk headers and trailers, less an allowance for its content
        self._request_timer: asyncio.TimerHandle | None = None
        self._disconnected: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timer of the first request; aborts connections far above the limit."""
        super().connection_made(transport)
        self.flow = PipelineFlowControl(transport, self.pipeline)
        self._metrics.connections.inc()
        self._is_over_limit = len(self.connections) > self._settings.max_connections
        if len(self.connections) > 2 * self._settings.max_connections:  # too many to send each a response
            transport.abort()
            return
        self._socket = ClientSocket(transport, self._buffer)
        # for uvicorn's responses, which would close it at once
        self._response_transport: Any = types.SimpleNamespace(
            write=transport.write, is_closing=transport.is_closing, close=self.close_after_response
        )
        transport.set_write_buffer_limits(0)  # calls `pause_writing` as soon as a byte is unsent
        self._start_request_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers, and cancels what runs for this client."""
        self._metrics.connections.dec()
        if self._socket:
            self._socket.detach()
            self._socket = None
        self._cancel_request_timer()
        self._disconnected.set_result(None)
        self.resume_writing()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Returns the buffer to read into: a small part of it for a head, since the body may be refused."""
        return self._buffer if self._head_bytes_left is None else self._buffer[:_HEAD_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Handles the bytes read: discards the body of a shed request, sheds the next, and parses the rest."""
        if self._is_over_limit:  # only now: closing with unread bytes resets the connection, and loses the response
            self._refuse(TooManyConnections(1))
            return
        if self._is_lingering:
            self._unset_keepalive_if_required()
            return
        data = self._buffer[:nbytes]
        read = 0
        while read < nbytes and not self.transport.is_closing():
            read += self._discard(nbytes - read) or self._try_to_shed(data, read) or self._parse(data, read)
        if self._bytes_to_discard and self._socket:
            self._bytes_to_discard -= self._socket.discard(self._bytes_to_discard)
        self._update_request_timer()

    def _discard(self, available: int) -> int:
        """Skips bytes of the body of a request that was shed; returns how many."""
        discarded = min(available, self._bytes_to_discard)
        self._bytes_to_discard -= discarded
        return discarded

    def _try_to_shed(self, data: memoryview, start: int) -> int:
        """Announces the next request; returns its head's size if it was shed, 0 if the parser is to read it."""
        end = start + self._settings.max_header_bytes
        head = read_plain_head(data, start, end) if self._is_idle else None
        if not head:
            return 0
        try:
            self._arrival = self._shedder.announce(head)
        except Overloaded as overload:
            self._shed(head, overload)
            return head.size
        return 0

    def _parse(self, data: memoryview, start: int) -> int:
        """Parses the bytes, up to the limit of a head; returns how many."""
        self.flush_refusal()  # responses go out in the order of their requests
        part: Any = data[start:]  # uvicorn declares bytes, but the parser takes any buffer
        if self._head_bytes_left is None:
            self._overhead_bytes += len(part)
            self.data_received(part)
            if self._overhead_bytes > self._settings.max_header_bytes:
                self._refuse(HeadTooLarge("the chunk headers and trailers of the body have too many bytes"))
        else:
            part = part[: self._head_bytes_left]
            mask_upgrade(part)
            self._head_bytes_left -= len(part)
            self.data_received(part)
            if self._head_bytes_left == 0:
                self._refuse(HeadTooLarge(f"the head has more than {self._settings.max_header_bytes} bytes"))
        return len(part)

    def on_headers_complete(self) -> None:
        """Starts the app for the request."""
        self._head_bytes_left = None
        self._overhead_bytes = 0
        self._cancel_request_timer()
        if self.parser.should_upgrade():  # an Upgrade header split between two reads, or CONNECT
            self._refuse(InvalidRequest("send HTTP/1.1, and do not offer another protocol"))
            return
        self.scope["state"][DISCONNECTED] = self._disconnected
        if self._arrival and self._is_answered:  # else it belongs to the request before this one
            self.scope["state"]["arrival"] = self._arrival
        super().on_headers_complete()
        self.cycle.transport = self._response_transport

    def on_header(self, name: bytes, value: bytes) -> None:
        """Stores a header; ignores trailers, which nothing reads."""
        if self._head_bytes_left is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Passes a part of the body on to the app."""
        self._overhead_bytes = max(0, self._overhead_bytes - 16 * len(body))  # the allowance for one-byte chunks
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Prepares for the next head."""
        self._head_bytes_left = self._settings.max_header_bytes
        self._overhead_bytes = 0
        self._cancel_request_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of a body that was answered early."""
        super().on_response_complete()
        if self._arrival:  # still counted if the app refused it before `expect`
            self._arrival.end()
            if self._arrival.others_were_refused:
                self._shedder.pause_with_others(self)
            self._arrival = None
        self._update_request_timer()

    def close_after_response(self) -> None:
        """Closes; while the client still sends the body, only the sending half, until it closes or the timer ends.

        Closing with unread bytes would reset the connection, and lose the response (RFC 9112, section 9.6).
        """
        if self._head_bytes_left is None and self._is_answered and not self.transport.is_closing():
            self._is_lingering = True
            self.transport.write_eof()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuses what the parser cannot read."""
        self._refuse(InvalidRequest("send HTTP/1.1, and in the address percent-encode what is not ASCII"))

    def shutdown(self) -> None:
        """Answers what the client has sent by now, then closes."""
        self._is_shutting_down = True
        self.read_available()
        self.flush_refusal()
        super().shutdown()

    def pause_writing(self) -> None:
        """Adds the connection to the write backlog."""
        super().pause_writing()
        self._backlog.add(self)

    def resume_writing(self) -> None:
        """Removes the connection from the write backlog: its write buffer is empty."""
        super().resume_writing()
        self._backlog.remove(self)

    def _start_request_timer(self) -> None:
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(self._settings.header_timeout_seconds, self._on_request_timeout)

    def _update_request_timer(self) -> None:
        """Runs the timer while the rest of a head, or of a body that is already answered, is to come.

        Without a request, the keep-alive timer runs instead.
        """
        if self._head_bytes_left is None:
            is_incomplete = self._is_answered
        else:
            is_incomplete = self._bytes_to_discard > 0 or self._head_bytes_left < self._settings.max_header_bytes
        if is_incomplete and not self.transport.is_closing():
            self._start_request_timer()
        else:
            self._cancel_request_timer()
            if self._is_idle and self.timeout_keep_alive_task is None:  # the rest of a discarded body has arrived
                super().on_response_complete()

    def _cancel_request_timer(self) -> None:
        if self._request_timer:
            self._request_timer.cancel()
            self._request_timer = None

    def _on_request_timeout(self) -> None:
        self._request_timer = None
        if not self._is_answered:  # a pipelined request is slow: the current one goes on
            self._start_request_timer()
        elif self._head_bytes_left in (None, self._settings.max_header_bytes):  # answered early, or no request
            self.transport.close()
        else:
            seconds = self._settings.header_timeout_seconds
            self._refuse(SlowHead(f"the head did not arrive within {seconds:g} s"))

    def _refuse(self, error: Exception) -> None:
        """Sends the error response, unless another response has begun, and closes."""
        status, response = self._build_response(error, _CLOSE)
        if self._is_answered or not self.cycle.response_started:
            self.transport.write(response)
        if self._is_answered:  # else the app counts it
            self._metrics.requests.labels("unmatched", "other", status).inc()
        self.transport.close()

    @property
    def _is_idle(self) -> bool:
        """Whether no request has begun or is in progress."""
        return self._head_bytes_left == self._settings.max_header_bytes and self._is_answered

    @property
    def _is_answered(self) -> bool:
        """Whether the latest request, if any, has its whole response."""
        return self.cycle is None or self.cycle.response_complete

    def _shed(self, head: PlainHead, overload: Overloaded) -> None:
        """Refuses a request before it is parsed, and discards its body."""
        self.flush_refusal()
        headers = _CLOSE if self._is_shutting_down else ()
        status, self._refusal = self._build_response(overload, headers, head.request_id)
        self._shedder.flush_soon(self)
        self._metrics.requests.labels(head.path, "POST", status).inc()
        self._bytes_to_discard = head.body_size
        self._cancel_request_timer()
        self._unset_keepalive_if_required()
        self._shedder.pause(self, overload.wait_seconds)

    def flush_refusal(self) -> None:
        """Sends the deferred refusal, if any."""
        if self._refusal and not self.transport.is_closing():
            self.transport.write(self._refusal)
        self._refusal = b""

    def set_low_water_mark(self, min_bytes: int) -> None:
        """Wakes the event loop only once the client has sent `min_bytes`, or disconnected."""
        if self._socket:
            self._socket.set_low_water_mark(min_bytes)

    def read_available(self) -> None:
        """Handles what the client has sent, without waiting for the event loop."""
        if self._socket and (count := self._socket.read(_HEAD_BYTES)):
            self.buffer_updated(count)

    def count_unsent(self) -> int:
        """Returns the bytes in the write buffer."""
        return self.transport.get_write_buffer_size()

    def abort(self, error: SlowReader) -> None:
        """Closes the connection at once, and counts and logs the error."""
        self._build_response(error)
        self.transport.abort()

    def _build_response(
        self, error: Exception, headers: Sequence[tuple[bytes, bytes]] = (), request_id: str = ""
    ) -> tuple[int, bytes]:
        """Returns the status and bytes of an error's response; counts and logs it."""
        with request_id_context(request_id) as request_id:
            status, rest = self._respond(error)
            logger.log(choose_log_level(error), "%s: %d %s", self.client[0] if self.client else "", status, error)
        headers = [*self.server_state.default_headers, (RAW_HEADER, request_id.encode()), *headers]
        return status, b"".join([STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers], rest])

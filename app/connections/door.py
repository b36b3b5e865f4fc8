"""Where pictures are refused for which there is no place, before the parser and the app hear of them.

Of a flood many times what the model can do, each refusal takes from the model what it costs: here that is little.
"""

import asyncio
import dataclasses
import functools
import re
from collections.abc import Callable, Collection
from typing import Protocol

from app.admission import Arrival, Overloaded
from app.connections.client_socket import CAN_WAIT
from app.request_id import RAW_HEADER

Headers = tuple[tuple[bytes, bytes], ...]

# every repetition is possessive: nothing that a client sends has it tried twice
_HEAD = re.compile(rb"POST /[!-~]*+ HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t -~\x80-\xff]*+\r\n)*+\r\n")
_UNUSUAL = {b"transfer-encoding", b"expect", b"upgrade", b"origin"}  # an origin's CORS is the app's
_MOST_DIGITS = 18
_MOST_HOLD_SECONDS = 0.25
_HELD_BYTES = 256 * 1024  # that a client may send until it is heard before its time


@dataclasses.dataclass(frozen=True, eq=False)
class PlainHead:
    """The head of a POST that keeps its connection, with a body of known size, and asks for nothing more."""

    path: str
    query: bytes
    headers: Headers  # their names in lower case
    request_id: str  # the client's own, or empty
    size: int  # bytes, with the empty line
    body_size: int  # bytes


def read_plain_head(data: bytes | memoryview, start: int, end: int) -> PlainHead | None:
    """Reads the head that begins at `start`; None where it does not end before `end`, or is not as plain as most."""
    match = _HEAD.match(data, start, end)
    return _understand(match.group()) if match else None


@functools.lru_cache(128)
def _understand(head: bytes) -> PlainHead | None:  # who is sent away comes again with the same
    request, *lines = head.split(b"\r\n")[:-2]
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip()))
    names = [name for name, _ in headers]
    fields = dict(headers)
    length = fields.get(b"content-length", b"0")
    if (
        not _UNUSUAL.isdisjoint(names)
        or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive"
        or max(names.count(b"connection"), names.count(b"content-length")) > 1
        or not (length.isdigit() and len(length) <= _MOST_DIGITS)
    ):
        return None
    path, _, query = request.split(b" ")[1].partition(b"?")
    request_id = next((value for name, value in headers if name == RAW_HEADER), b"")  # the first, as for the app
    return PlainHead(path.decode(), query, tuple(headers), request_id.decode("latin-1"), len(head), int(length))


class Client(Protocol):
    """Whom the door may hold: a connection that has its answer."""

    def send_answer(self) -> None:
        """Sends what was put off."""

    def await_bytes(self, least: int) -> None:
        """Has the event loop not wake for the client before it has sent so many bytes, or hung up."""

    def hear(self) -> None:
        """Deals with what the client has sent."""

    def release(self) -> None:
        """Waits for the next request as usual."""


class Door:
    """Asks for a place on behalf of each picture that comes, and holds who was sent away.

    `paths` take pictures; `announce` is told the query and headers of one, and raises `Overloaded` if it need not come.
    """

    def __init__(self, paths: Collection[str], announce: Callable[[bytes, Headers], Arrival | None]) -> None:
        self._paths = paths
        self._announce = announce
        self._overloads: dict[PlainHead, Overloaded] = {}
        self._held: dict[Client, None] = {}
        self._answered: list[Client] = []

    def ask(self, head: PlainHead) -> Arrival | None:
        """Announces what comes if it is a picture; raises `Overloaded` where it need not come."""
        if head.path not in self._paths:
            return None
        if overload := self._overloads.get(head):
            raise overload.with_traceback(None)
        try:
            return self._announce(head.query, head.headers)
        except Overloaded as overload:
            if not self._overloads:
                asyncio.get_running_loop().call_soon(self._overloads.clear)
            self._overloads[head] = overload  # who asks the same in this turn of the event loop is told the same
            raise

    def send_soon(self, client: Client) -> None:
        """Has answers sent one right after the other: each by itself would wake its reader's CPU, which takes long."""
        if not self._answered:
            asyncio.get_running_loop().call_soon(self._send)
        self._answered.append(client)

    def _send(self) -> None:
        answered, self._answered = self._answered, []
        for client in answered:
            client.send_answer()

    def hold(self, client: Client, wait_seconds: float) -> None:
        """Has a client that was sent away not heard for a moment, in which no place is left empty.

        All who were held are heard together: refusals in a row cost less than one by one, when each has the event loop
        wake, and finds no cache warm. Where the system has no such option, the client is heard as usual.
        """
        if not CAN_WAIT:
            client.release()
            return
        if not self._held:
            asyncio.get_running_loop().call_later(min(_MOST_HOLD_SECONDS, wait_seconds / 2), self._hear)
        self._hold(client)

    def hold_too(self, client: Client) -> None:
        """Has a client that was answered heard with those who were sent away, where there are any."""
        if self._held:
            self._hold(client)

    def _hold(self, client: Client) -> None:
        self._held[client] = None
        client.await_bytes(_HELD_BYTES)

    def _hear(self) -> None:
        held, self._held = self._held, {}
        for client in held:
            asyncio.get_running_loop().call_soon(self._hear_one, client)  # what one breaks, the others do not bear

    def _hear_one(self, client: Client) -> None:
        try:
            client.hear()
        finally:
            if client not in self._held:
                client.await_bytes(1)
                client.release()

"""Where pictures are refused for which there is no place, before the parser and the app hear of them.

Of a flood many times what the model can do, each refusal takes from the model what it costs: here that is little.
"""

import asyncio
import dataclasses
import re
import socket
from collections.abc import Callable, Collection, Sequence

from app.admission import Arrival

Headers = Sequence[tuple[bytes, bytes]]

# every repetition is possessive: nothing that a client sends has it tried twice
_HEAD = re.compile(rb"POST (/[!-~]*+) HTTP/1\.1\r\n((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t -~\x80-\xff]*+\r\n)*+)\r\n")
_UNUSUAL = {b"transfer-encoding", b"expect", b"upgrade", b"origin"}  # an origin's CORS is the app's
_MOST_DIGITS = 18
_MOST_HOLD_SECONDS = 0.1
_HELD_BYTES = 256 * 1024  # that a client may send until it is heard before its time
_CAN_HOLD = hasattr(socket, "SO_RCVLOWAT")


@dataclasses.dataclass(frozen=True)
class PlainHead:
    """The head of a POST that keeps its connection, with a body of known size, and asks for nothing more."""

    path: str
    query: bytes
    headers: Headers  # their names in lower case
    size: int  # bytes, with the empty line
    body_size: int  # bytes


def read_plain_head(data: bytes, start: int, end: int) -> PlainHead | None:
    """Reads the head that begins at `start`; None where it does not end before `end`, or is not as plain as most."""
    match = _HEAD.match(data, start, end)
    if not match:
        return None
    target, lines = match.groups()
    headers = []
    for line in lines.split(b"\r\n")[:-1]:
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
    path, _, query = target.partition(b"?")
    return PlainHead(path.decode(), query, headers, match.end() - start, int(length))


class Door:
    """Which paths take pictures, and what is told of one that comes: its query and headers.

    `announce` raises `Overloaded` where the picture need not come.
    """

    def __init__(self, paths: Collection[str], announce: Callable[[bytes, Headers], Arrival | None]) -> None:
        self.paths = paths
        self.announce = announce
        self._held: list[socket.socket] = []
        self._answers: list[Callable[[], None]] = []

    def send_soon(self, answer: Callable[[], None]) -> None:
        """Has answers sent one right after the other: each by itself would wake its reader's CPU, which takes long."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._send)
        self._answers.append(answer)

    def _send(self) -> None:
        answers, self._answers = self._answers, []
        for answer in answers:
            answer()

    def hold(self, client: socket.socket, wait_seconds: float) -> None:
        """Has the event loop not wake for a client that was sent away, for a moment in which no place is left empty.

        All who were held are heard together: refusals in a row cost less than one by one, when each has the event loop
        wake, and finds no cache warm. Where the system has no such option, nothing happens.
        """
        if not _CAN_HOLD:
            return
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _HELD_BYTES)
        if not self._held:
            asyncio.get_running_loop().call_later(min(_MOST_HOLD_SECONDS, wait_seconds / 2), self._hear)
        self._held.append(client)

    def _hear(self) -> None:
        held, self._held = self._held, []
        for client in held:
            if client.fileno() >= 0:  # it has not hung up
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

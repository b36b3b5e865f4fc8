"""A client's socket, for what its transport does not do: the system can spare us much with who is sent away."""

import asyncio
import socket
import sys

CAN_WAIT = hasattr(socket, "SO_RCVLOWAT")
_CAN_SKIP = sys.platform == "linux"  # there a TCP socket drops bytes of which only the count is asked for


class ClientSocket:
    """A second handle of a transport's socket, since its own is slow; the transport hears of the end."""

    def __init__(self, transport: asyncio.Transport, buffer: memoryview) -> None:
        own = transport.get_extra_info("socket")
        self._socket = socket.socket(own.family, own.type, own.proto, own.fileno())
        self._transport = transport
        self._buffer = buffer
        self._awaited_bytes = 1

    def detach(self) -> None:
        """Leaves the socket to the transport, which closes it."""
        self._socket.detach()

    def read(self, most: int) -> int:
        """Reads what has come, up to so many bytes, into the buffer; returns how many, 0 where nothing has come."""
        return self._receive(most)

    def skip(self, most: int) -> int:
        """Has the system drop what has come, up to so many bytes, where it can do so; returns how many."""
        return self._receive(min(most, len(self._buffer)), socket.MSG_TRUNC) if _CAN_SKIP else 0

    def await_bytes(self, least: int) -> None:
        """Wakes the event loop only once the client has sent `least` bytes (SO_RCVLOWAT), or hung up."""
        if least != self._awaited_bytes and not self._transport.is_closing():
            self._awaited_bytes = least
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)

    def _receive(self, most: int, flags: int = 0) -> int:
        if self._transport.is_closing():
            return 0
        try:
            return self._socket.recv_into(self._buffer, most, flags)
        except OSError:
            return 0

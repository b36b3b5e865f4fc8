"""Socket options that an asyncio transport does not offer: they make paused and refused clients cheap."""

import asyncio
import socket
import sys

HAS_LOW_WATER_MARK = hasattr(socket, "SO_RCVLOWAT")
_CAN_DISCARD = sys.platform == "linux"  # on a TCP socket, MSG_TRUNC there drops bytes without copying them


class ClientSocket:
    """A second handle of a transport's socket: the transport's own is slow.

    Reads at the end of the stream and socket errors return 0: the transport sees and handles them.
    """

    def __init__(self, transport: asyncio.Transport, buffer: memoryview) -> None:
        own = transport.get_extra_info("socket")
        self._socket = socket.socket(own.family, own.type, own.proto, own.fileno())
        self._transport = transport
        self._buffer = buffer
        self._low_water_mark = 1

    def detach(self) -> None:
        """Leaves the socket to the transport, which closes it."""
        self._socket.detach()

    def read(self, max_bytes: int) -> int:
        """Reads available bytes into the buffer; returns how many, 0 if there are none."""
        return self._receive(max_bytes)

    def discard(self, max_bytes: int) -> int:
        """Drops available bytes in the kernel, where that is possible; returns how many."""
        return self._receive(min(max_bytes, len(self._buffer)), socket.MSG_TRUNC) if _CAN_DISCARD else 0

    def set_low_water_mark(self, min_bytes: int) -> None:
        """Wakes the event loop only once `min_bytes` are available (SO_RCVLOWAT), or the client disconnects."""
        if min_bytes != self._low_water_mark and not self._transport.is_closing():
            self._low_water_mark = min_bytes
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min_bytes)

    def _receive(self, max_bytes: int, flags: int = 0) -> int:
        if self._transport.is_closing():
            return 0
        try:
            return self._socket.recv_into(self._buffer, max_bytes, flags)
        except OSError:
            return 0

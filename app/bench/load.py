"""A load generator, which uses as little CPU as possible: it shares the machine with the server."""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence


@dataclasses.dataclass
class ClientStats:
    """What the clients measured; status 0 counts requests without a response."""

    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)  # latencies of responses with status 200
    moments: list[float] = dataclasses.field(default_factory=list)  # their completion, by `time.perf_counter`
    disconnected: int = 0


class Connection:
    """One HTTP/1.1 connection to a server on this machine, reopened after the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, request: bytes, stats: ClientStats) -> None:
        """Sends a request, waits for the response and records it; status 0 if there is none."""
        started = time.perf_counter()
        if self._streams and self._streams[0].at_eof():  # the server's keep-alive timeout has expired
            self.close()
        reader, writer = self._streams or await self._open()
        try:
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            stats.statuses[0] += 1
            return
        status = int(head[9:12])
        stats.statuses[status] += 1
        if status == 200:
            stats.moments.append(time.perf_counter())
            stats.seconds.append(stats.moments[-1] - started)
        if b"connection: close" in head:
            self.close()

    async def disconnect(self, request: bytes, stats: ClientStats) -> None:
        """Sends a request and closes the connection without waiting for the response."""
        _, writer = self._streams or await self._open()
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        self.close()
        stats.disconnected += 1

    def close(self) -> None:
        """Closes the connection."""
        if self._streams:
            self._streams[1].close()
        self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams


def build_request(data: bytes, query: str = "") -> bytes:
    """Returns the bytes of a `POST /detect` request with an image file as its body."""
    return f"POST /detect{query} HTTP/1.1\r\nHost: load\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def run_clients(
    port: int,
    requests: Sequence[bytes],
    seconds: float,
    connections: int,
    send: Callable[[int, Connection, bytes, ClientStats], Awaitable[None]] | None = None,
) -> ClientStats:
    """Runs closed-loop clients, each of which sends the requests in turn on a connection of its own.

    `send` replaces `Connection.post`; its first argument is the client's number.
    """
    stats, end = ClientStats(), time.monotonic() + seconds

    async def run_client(number: int) -> None:
        connection = Connection(port)
        for turn in itertools.count(number):
            if time.monotonic() >= end:
                break
            request = requests[turn % len(requests)]
            await (send(number, connection, request, stats) if send else connection.post(request, stats))
        connection.close()

    await asyncio.gather(*(run_client(number) for number in range(connections)))
    return stats

"""Clients that load a server, as cheap as they can be: they share the machine with it."""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence


@dataclasses.dataclass
class ClientStats:
    """What the clients saw."""

    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)  # that the answers 200 took
    moments: list[float] = dataclasses.field(default_factory=list)  # when they came, by `time.perf_counter`
    disconnected: int = 0


class Connection:
    """One HTTP/1.1 connection to this machine, opened again where the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, request: bytes, seen: ClientStats) -> None:
        """Sends a request and notes its answer; status 0 where there is none."""
        started = time.perf_counter()
        if self._streams and self._streams[0].at_eof():  # it has been idle for too long
            self.close()
        reader, writer = self._streams or await self._open()
        try:
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            seen.statuses[0] += 1
            return
        status = int(head[9:12])
        seen.statuses[status] += 1
        if status == 200:
            seen.moments.append(time.perf_counter())
            seen.seconds.append(seen.moments[-1] - started)
        if b"connection: close" in head:
            self.close()

    async def disconnect(self, request: bytes, seen: ClientStats) -> None:
        """Sends a request and hangs up."""
        _, writer = self._streams or await self._open()
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        self.close()
        seen.disconnected += 1

    def close(self) -> None:
        """Hangs up."""
        if self._streams:
            self._streams[1].close()
        self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams


def build_request(data: bytes, query: str = "") -> bytes:
    """Returns a POST of an image file to `/detect`."""
    return f"POST /detect{query} HTTP/1.1\r\nHost: load\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def run_clients(
    port: int,
    requests: Sequence[bytes],
    seconds: float,
    connections: int,
    send: Callable[[int, Connection, bytes, ClientStats], Awaitable[None]] | None = None,
) -> ClientStats:
    """Each of so many clients sends its next request, in turn, as soon as it has its answer.

    `send` does so where it is not just `Connection.post`; it is told the client's number.
    """
    seen, end = ClientStats(), time.monotonic() + seconds

    async def ask(number: int) -> None:
        connection = Connection(port)
        for turn in itertools.count(number):
            if time.monotonic() >= end:
                break
            request = requests[turn % len(requests)]
            await (send(number, connection, request, seen) if send else connection.post(request, seen))
        connection.close()

    await asyncio.gather(*(ask(number) for number in range(connections)))
    return seen

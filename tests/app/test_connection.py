"""Slow, greedy and too many clients, on real sockets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.connections.connection import Connection
from app.connections.write_backlog import SlowReader, WriteBacklog
from app.inference.admission import Admission
from app.settings import Settings
from model.detector import Detector
from tests.app.client import Client, until
from tests.app.colours import PHOTO_PNG
from tests.app.detectors import HeldDetector
from tests.app.listener import listen

pytestmark = pytest.mark.anyio

OPENAPI = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
Make = Callable[..., Settings]
Listen = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


class Wire:
    """A raw connection that sends exactly the given bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read_response(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            return int(status.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def check_refused(self, status: int, reason: str) -> None:
        received, headers, body = await self.read_response()
        problem = json.loads(body)
        assert (received, problem["status"], problem["type"]) == (status, status, f"/docs#{reason}")
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        assert headers["x-request-id"] == problem["request_id"] != ""
        await self.check_closed()

    async def check_closed(self) -> None:
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionResetError):
                assert await self.reader.read() == b""

    async def check_alive(self) -> None:
        self.send(LIVE)
        assert (await self.read_response())[0] == 200


BODIES = [
    b"Content-Length: %d\r\n\r\n%b" % (len(PHOTO_PNG), PHOTO_PNG),
    b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(PHOTO_PNG), PHOTO_PNG),
]


@pytest.fixture
def served(make_settings: Callable[..., Settings], model_path: Path) -> Listen:
    return lambda **changes: listen(make_settings(**changes), Detector(model_path, "cpu", 1))


@contextlib.asynccontextmanager
async def connect(client: Client) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("head", [b"P", b"GET / HTTP/1.1\r\nHost:", b"\r\n", b"GET /health/live HTTP/1.1\r\nA: b\r\n"])
async def test_slow_request_head_times_out(served: Listen, head: bytes) -> None:
    async with served(header_timeout_seconds=0.05) as client, connect(client) as wire:
        wire.send(head)
        await wire.check_refused(408, "slow-head")
        assert await client.sample("centernet_rejections_total", reason="slow-head") == 1


@pytest.mark.parametrize("head", [b"GET", b"\r\n"])
async def test_slow_request_head_after_a_response_times_out(served: Listen, head: bytes) -> None:
    async with served(header_timeout_seconds=0.05) as client, connect(client) as wire:
        await wire.check_alive()
        wire.send(head)
        await wire.check_refused(408, "slow-head")


async def test_request_head_of_a_client_that_has_left_does_not_time_out(served: Listen) -> None:
    async with served(header_timeout_seconds=0.3) as client:
        async with connect(client) as gone:
            gone.send(b"GET / HTTP/1.1\r\nHost:")
            gone.writer.write_eof()
            await gone.check_closed()
        async with connect(client) as slow:  # its timer began later, and so ends later
            slow.send(b"GET")
            await slow.check_refused(408, "slow-head")
        assert await client.sample("centernet_rejections_total", reason="slow-head") == 1


async def test_silent_clients_are_disconnected(served: Listen) -> None:
    async with served(header_timeout_seconds=0.05, idle_timeout_seconds=0.05) as client, connect(client) as mute:
        await mute.check_closed()
        async with connect(client) as idle:
            await idle.check_alive()
            await idle.check_closed()
        assert await client.sample("centernet_rejections_total") == 0


async def test_header_timeout_does_not_apply_to_body_and_response(served: Listen, model_path: Path) -> None:
    async with served(header_timeout_seconds=0.001, body_timeout_seconds=0.1) as client, connect(client) as wire:
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        received, _, body = await wire.read_response()
        assert (received, json.loads(body)["type"]) == (408, "/docs#slow-body")


UPGRADE = b"POST /detect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"


@pytest.mark.parametrize("body", BODIES)
async def test_upgrade_header_is_ignored(served: Listen, body: bytes) -> None:
    async with served() as client, connect(client) as wire:
        wire.send(UPGRADE + body)
        assert (await wire.read_response())[0] == 200
        await wire.check_alive()


async def test_upgrade_header_that_arrives_in_two_parts_is_refused(served: Listen) -> None:
    async with served() as client, connect(client) as wire:
        wire.send(UPGRADE[:-10])
        assert (await client.get("/health/live")).status_code == 200  # by now the first part has been read
        wire.send(UPGRADE[-10:] + BODIES[0])
        await wire.check_refused(400, "invalid-request")


def pad(length: int) -> bytes:
    head = b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n"
    return head.replace(b"A: ", b"A: " + b"b" * (length - len(head)))


async def test_head_size_is_limited(served: Listen) -> None:
    async with served(max_header_bytes=1000) as client, connect(client) as wire:
        for _ in range(2):
            wire.send(pad(1000))
            assert (await wire.read_response())[0] == 200
        wire.send(pad(1001))
        await wire.check_refused(431, "head-too-large")


@pytest.mark.parametrize("part", [b"/" + b"x" * 2000, b"/ HTTP/1.1\r\n" + b"a: b\r\n" * 400])
async def test_head_over_the_limit_is_refused_before_it_ends(served: Listen, part: bytes) -> None:
    async with served(max_header_bytes=1000) as client, connect(client) as wire:
        wire.send(b"GET ")
        wire.send(part)
        await wire.check_refused(431, "head-too-large")


@pytest.mark.parametrize("trailer", [b"a: " + b"b" * 2000, b"a: b\r\n" * 400])
async def test_trailer_over_the_limit_is_refused_before_it_ends(served: Listen, trailer: bytes) -> None:
    async with served(max_header_bytes=1000) as client, connect(client) as wire:
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await client.until("centernet_body_bytes", 1)
        wire.send(b"0\r\n" + trailer)
        await wire.check_refused(431, "head-too-large")
        await client.until("centernet_body_bytes", 0)


async def test_body_in_small_chunks_is_read(served: Listen) -> None:
    async with served(max_header_bytes=100) as client, connect(client) as wire:
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in PHOTO_PNG:
            wire.send(b"1\r\n%c\r\n" % byte)
        wire.send(b"0\r\n\r\n")
        assert (await wire.read_response())[0] == 200


@pytest.mark.parametrize("later", [b"", b"x", b"x" * 1000])
async def test_wait_for_the_rest_of_a_refused_body_is_limited(served: Listen, later: bytes) -> None:
    async with served(header_timeout_seconds=0.05, max_image_bytes=1000) as client, connect(client) as wire:
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (await wire.read_response())[0] == 413
        wire.send(later)
        await wire.check_closed()


async def test_rest_of_a_refused_body_is_discarded_before_the_next_request(served: Listen) -> None:
    async with served(max_image_bytes=1000) as client, connect(client) as wire:
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
        assert (await wire.read_response())[0] == 413
        wire.send(b"x" * 5000)
        await wire.check_alive()


async def test_silent_client_is_disconnected_after_the_rest_of_a_refused_body(served: Listen) -> None:
    async with served(idle_timeout_seconds=0.2) as client, connect(client) as wire:
        wire.send(b"POST /detect?model=other HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
        assert (await wire.read_response())[0] == 404
        wire.send(bytes(5000))
        await wire.check_closed()


@pytest.mark.parametrize("head", [b"HTTP/1.1\r\nConnection: close", b"HTTP/1.0"])
async def test_early_refusal_reaches_a_client_that_sends_its_body_and_wants_to_close(
    served: Listen, head: bytes
) -> None:
    async with served(max_image_bytes=1000) as client, connect(client) as wire:
        wire.send(b"POST /detect %b\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" % head)
        wire.send(bytes(5_000_000))
        await wire.check_refused(413, "body-too-large")
        async with asyncio.timeout(30):
            await wire.writer.drain()
        wire.writer.close()
        await client.until("centernet_connections", 1)


async def test_wait_for_the_body_of_a_refused_client_that_wants_to_close_is_limited(served: Listen) -> None:
    async with served(header_timeout_seconds=0.05, max_image_bytes=1000) as client, connect(client) as wire:
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5000000\r\n\r\n")
        await wire.check_refused(413, "body-too-large")  # the server's half is closed at once
        wire.send(b"x")
        await client.until("centernet_connections", 1)


async def test_slow_reader_is_disconnected(served: Listen) -> None:
    async with served(answer_timeout_seconds=0.1) as client, connect(client) as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(OPENAPI * 1000)  # more than a socket's buffers hold
        await client.until("centernet_rejections_total", 1, reason="slow-reader")
        await client.until("centernet_connections", 1)
        assert (await client.detect()).status_code == 200


class Reader:
    """A client that leaves one byte unread."""

    error: SlowReader | None = None

    def count_unsent(self) -> int:
        return 1

    def abort(self, error: SlowReader) -> None:
        self.error = error


async def test_reader_that_has_caught_up_stays_connected(make_settings: Make) -> None:
    backlog = WriteBacklog(make_settings(answer_timeout_seconds=0.01))
    quick, slow = Reader(), Reader()
    backlog.add(quick)
    backlog.remove(quick)
    backlog.add(slow)  # its timer would be the second one to end
    await until(lambda: slow.error)
    assert quick.error is None


async def test_unread_responses_are_limited(served: Listen) -> None:
    limits = {"max_image_bytes": 1000, "max_request_bytes": 1000, "max_held_bytes": 1000}
    async with served(**limits) as client, connect(client) as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(OPENAPI * 1000)
        await client.until("centernet_rejections_total", 1, reason="slow-reader")
        await client.until("centernet_connections", 1)


async def test_pipelined_requests_are_answered(served: Listen) -> None:
    async with served(max_header_bytes=100) as client, connect(client) as wire:
        wire.send(LIVE * 50)
        for _ in range(50):
            assert (await wire.read_response())[0] == 200


async def test_pipelined_requests_are_read_no_faster_than_they_are_answered(
    served: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    complete = Connection.on_response_complete

    def count_and_complete(connection: Connection) -> None:
        waiting.append(len(connection.pipeline))
        complete(connection)

    monkeypatch.setattr(Connection, "on_response_complete", count_and_complete)
    async with served() as client, connect(client) as wire:
        wire.send(LIVE * 1000)
        for _ in range(1000):
            assert (await wire.read_response())[0] == 200
    assert max(waiting) <= 200  # about as many as fit into a read of 4 KiB


async def test_malformed_request_is_refused(served: Listen) -> None:
    async with served() as client, connect(client) as wire:
        wire.send(b"hello\r\n\r\n")
        await wire.check_refused(400, "invalid-request")
        assert await client.sample("centernet_requests_total", route="unmatched", method="other", status="400") == 1


async def test_head_request_is_answered_like_get_without_a_body(served: Listen) -> None:
    async with served() as client, connect(client) as wire:
        for path in ("/", "/models", "/health/ready", "/v2/health/live", "/metrics", "/detect"):
            responses = [await getattr(client, method)(path) for method in ("get", "head")]
            assert [each.status_code for each in responses] == [405 if path == "/detect" else 200] * 2
            assert responses[0].content and not responses[1].content
            wire.send(b"HEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() + LIVE)
            head = await wire.reader.readuntil(b"\r\n\r\n")
            assert b"content-length: " in head
            assert (await wire.read_response())[0] == 200  # the response to the next request


async def test_malformed_chunk_is_refused(served: Listen) -> None:
    async with served() as client, connect(client) as wire:
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n")
        await wire.check_refused(400, "invalid-request")
        await client.until("centernet_connections", 1)
        await client.until("centernet_requests_total", 1, route="/detect")
        assert await client.sample("centernet_requests_total", route="unmatched") == 0  # counted once


@contextlib.asynccontextmanager
async def serve_full_queue(
    make_settings: Make, model_path: Path, **changes: float
) -> AsyncIterator[tuple[Client, Wire]]:
    """Serves with a queue of one, kept full until the block ends; yields a client and a connection."""
    detector = HeldDetector(model_path)
    async with listen(make_settings(max_queue=1, **changes), detector) as client:
        await client.detect()
        detector.gate.clear()
        held = asyncio.create_task(client.detect())
        await client.until("centernet_requests_in_flight", 1)
        async with connect(client) as wire:
            yield client, wire
            detector.gate.set()
            assert (await held).status_code == 200
            if not wire.reader.at_eof():
                wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\n" + BODIES[0])
                assert (await wire.read_response())[0] == 200


@pytest.mark.parametrize("body", BODIES)
async def test_requests_are_shed_while_the_queue_is_full(make_settings: Make, model_path: Path, body: bytes) -> None:
    async with serve_full_queue(make_settings, model_path) as (client, wire):
        for sent in (b"", b"X-Request-ID: mine\r\n"):
            wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\n" + sent + body)
            status, headers, answer = await wire.read_response()
            problem = json.loads(answer)
            assert (status, problem["type"]) == (503, "/docs#overloaded")
            assert 1 <= int(headers["retry-after"]) <= 60
            assert headers["x-request-id"] == problem["request_id"] != ""
            assert not sent or problem["request_id"] == "mine"
        wire.send(b"POST /detect?model=other HTTP/1.1\r\nHost: x\r\n" + body)
        assert (await wire.read_response())[0] == 404
        wire.send(b"POST /detect?model=other&threshold=7 HTTP/1.1\r\nHost: x\r\n" + body)
        assert (await wire.read_response())[0] == 422
        await wire.check_alive()  # the bodies were discarded
        assert await client.sample("centernet_requests_total", route="/detect", status="503") == 2
        assert await client.sample("centernet_rejections_total", reason="overloaded") == 2


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 503),  # shed before the parameters are validated
        (b"Origin: https://else.where\r\n", 422),  # from a browser: the app answers, with CORS headers
        (b"Connection: close\r\n", 422),
    ],
)
async def test_only_plain_requests_are_shed(make_settings: Make, model_path: Path, head: bytes, status: int) -> None:
    async with serve_full_queue(make_settings, model_path) as (_, wire):
        wire.send(b"POST /detect?threshold=7 HTTP/1.1\r\nHost: x\r\n" + head + BODIES[0])
        assert (await wire.read_response())[0] == status
        if b"close" in head:
            await wire.check_closed()


async def test_shed_requests_are_answered_in_order(make_settings: Make, model_path: Path) -> None:
    def post(number: int) -> bytes:
        return b"POST /detect HTTP/1.1\r\nHost: x\r\nX-Request-ID: %d\r\n%b" % (number, BODIES[0])

    async with serve_full_queue(make_settings, model_path) as (_, wire):
        wire.send(post(1) + post(2) + LIVE + post(3) + LIVE)
        responses = [await wire.read_response() for _ in range(5)]
        assert [status for status, _, _ in responses] == [503, 503, 200, 503, 200]
        assert [headers["x-request-id"] for status, headers, _ in responses if status == 503] == ["1", "2", "3"]
        wire.send(post(4) + b"hello\r\n\r\n")
        assert (await wire.read_response())[1]["x-request-id"] == "4"
        assert (await wire.read_response())[0] == 400
        await wire.check_closed()


async def test_body_of_a_shed_request_may_arrive_in_parts(make_settings: Make, model_path: Path) -> None:
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"
    async with serve_full_queue(make_settings, model_path) as (_, wire):
        for _ in range(2):
            wire.send(head)
            assert (await wire.read_response())[0] == 503
            wire.send(bytes(300000 - 1))
            wire.send(b"\0" + LIVE)
            assert (await wire.read_response())[0] == 200


@pytest.mark.parametrize("has_room", [False, True])
async def test_paused_client_is_answered_at_shutdown(
    make_settings: Make, model_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    monkeypatch.setattr("app.connections.load_shedding._MAX_PAUSE_SECONDS", 3600)
    monkeypatch.setattr(Admission, "record_service_time", lambda self, _: setattr(self, "_seconds_per_item", 3600))
    post = b"POST /detect?timeout=3600 HTTP/1.1\r\nHost: x\r\n" + BODIES[0]
    detector = HeldDetector(model_path)
    async with contextlib.AsyncExitStack() as stack:
        async with listen(make_settings(max_queue=1), detector) as client:
            await client.detect()
            first, second = [await stack.enter_async_context(connect(client)) for _ in range(2)]
            detector.gate.clear()
            first.send(post)
            await client.until("centernet_requests_in_flight", 1)
            second.send(post)
            assert (await second.read_response())[0] == 503
            second.send(post)  # it is paused
            if has_room:
                detector.gate.set()
                assert (await first.read_response())[0] == 200

            async def read_and_release() -> tuple[int, str]:
                status, headers, _ = await second.read_response()
                detector.gate.set()
                return status, headers["connection"]

            answer = asyncio.create_task(read_and_release())
        assert await answer == (200 if has_room else 503, "close")
        await second.check_closed()
        assert has_room or (await first.read_response())[0] == 200


async def test_requests_that_outlast_a_stop_are_refused(
    make_settings: Make, model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector = HeldDetector(model_path)
    async with contextlib.AsyncExitStack() as stack:
        async with listen(make_settings(stop_timeout_seconds=0.1), detector) as client:
            await client.detect()
            detector.gate.clear()
            uploading, computing = [await stack.enter_async_context(connect(client)) for _ in range(2)]
            uploading.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 9)
            computing.send(b"POST /detect HTTP/1.1\r\nHost: x\r\n" + BODIES[0])
            await client.until("centernet_requests_in_flight", 1)
            await client.until("centernet_body_bytes", len(PHOTO_PNG) + 9)
        await uploading.check_refused(503, "stopped")
        await computing.check_refused(503, "stopped")
        detector.gate.set()
    assert not any(record.exc_info for record in caplog.records)


async def test_paused_clients_may_disconnect(make_settings: Make, model_path: Path) -> None:
    async with serve_full_queue(make_settings, model_path) as (client, _):
        connections = await client.sample("centernet_connections")
        async with connect(client) as wire:
            wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\n" + BODIES[0])
            assert (await wire.read_response())[0] == 503
        await client.until("centernet_connections", connections)


async def test_request_refused_by_the_app_no_longer_counts_as_arriving(make_settings: Make, model_path: Path) -> None:
    detector = HeldDetector(model_path)
    async with listen(make_settings(max_queue=2), detector) as client, connect(client) as wire:
        await client.detect()
        detector.gate.clear()
        held = [asyncio.create_task(client.detect())]
        await client.until("centernet_requests_in_flight", 1)
        wire.send(b"POST /detect?threshold=7 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert (await wire.read_response())[0] == 422
        held.append(asyncio.create_task(client.detect()))
        await client.until("centernet_requests_in_flight", 2)
        detector.gate.set()
        assert [response.status_code for response in await asyncio.gather(*held)] == [200, 200]


@pytest.mark.parametrize("body", [b"", bytes(5000)])
async def test_silent_client_is_disconnected_after_a_shed_request(
    make_settings: Make, model_path: Path, body: bytes
) -> None:
    async with serve_full_queue(make_settings, model_path, idle_timeout_seconds=0.2) as (client, wire):
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert (await wire.read_response())[0] == 503
        assert await client.sample("centernet_request_seconds_count", route="/detect") == 1  # of the first request
        await wire.check_closed()


async def test_slow_body_of_a_shed_request_ends_the_connection(make_settings: Make, model_path: Path) -> None:
    async with serve_full_queue(make_settings, model_path, header_timeout_seconds=0.5) as (_, wire):
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert (await wire.read_response())[0] == 503
        await wire.check_closed()


async def test_complete_body_of_a_shed_request_stops_the_timer(make_settings: Make, model_path: Path) -> None:
    async with serve_full_queue(make_settings, model_path, header_timeout_seconds=1) as (_, wire):
        wire.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert (await wire.read_response())[0] == 503
        wire.send(bytes(10))
        await asyncio.sleep(1.5)
        await wire.check_alive()


async def test_connections_over_the_limit_are_refused(served: Listen) -> None:
    async with served(max_connections=2) as client, contextlib.AsyncExitStack() as wires:
        first, second = [await wires.enter_async_context(connect(client)) for _ in range(2)]
        await first.check_alive()
        await second.check_alive()
        third, fourth = [await wires.enter_async_context(connect(client)) for _ in range(2)]
        fifth = await wires.enter_async_context(connect(client))
        await fifth.check_closed()
        third.send(LIVE)
        await third.check_refused(503, "too-many-connections")
        await first.check_alive()
        fourth.send(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PHOTO_PNG) + PHOTO_PNG)
        await fourth.check_refused(503, "too-many-connections")
        second.writer.close()
        await client.until_status("/health/live", 200)
        refused = await client.sample("centernet_rejections_total", reason="too-many-connections")
        assert refused >= 2
        assert (
            await client.sample("centernet_requests_total", route="unmatched", method="other", status="503") == refused
        )

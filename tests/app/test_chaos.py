"""Shutdown under load, kills, no disk, and mass disconnects; model files and failing sessions are in `test_models`."""

import asyncio
import contextlib
import io
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.settings import Settings
from model.detector import Detector
from tests.app.client import Client
from tests.app.colours import GREEN_FOUND, PHOTO_PNG, RED_FOUND
from tests.app.listener import listen

pytestmark = pytest.mark.anyio
Make = Callable[..., Settings]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_HALF = len(PHOTO_PNG) // 2


@contextlib.asynccontextmanager
async def serving(
    model_path: Path, port: int = 0, before: Sequence[str] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    """Runs `python -m app`, prefixed with the command `before`; kills it in the end if it still runs."""
    options = [f"--port={port}", f"--model={model_path}", "--provider=cpu", "--threads=1"]
    command = [*before, sys.executable, "-m", "app", *options]
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=nothing)
    try:
        assert server.stdout is not None
        line = (await server.stdout.readline()).decode()
        async with Client(base_url=line.split()[-1], timeout=30) as client:
            yield server, client
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()


async def begin(client: Client) -> Streams:
    """Sends a request with half of its body."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTO_PNG)}\r\n\r\n"
    writer.write(head.encode() + PHOTO_PNG[:_HALF])
    await writer.drain()
    return reader, writer


async def finish(streams: Streams) -> bytes:
    """Sends the other half; returns everything received."""
    reader, writer = streams
    writer.write(PHOTO_PNG[_HALF:])
    response = await reader.read()
    writer.close()
    return response


async def test_accepted_requests_are_answered_when_the_server_stops_under_load(model_path: Path) -> None:
    served, stopped = asyncio.Event(), asyncio.Event()
    statuses: list[int] = []

    async def send_requests(client: Client) -> None:
        while not stopped.is_set():
            try:
                async with httpx.AsyncClient(base_url=client.base_url) as own:
                    statuses.append((await own.post("/detect", content=PHOTO_PNG)).status_code)
                served.set()
            except httpx.TransportError:  # connections are no longer accepted
                await stopped.wait()

    async with serving(model_path) as (server, client), asyncio.timeout(60):
        accepted = [await begin(client) for _ in range(20)]
        await client.until("centernet_body_bytes", 20 * _HALF)
        senders = [asyncio.create_task(send_requests(client)) for _ in range(8)]
        await served.wait()
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while True:  # until the server accepts no more connections
                _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
                writer.close()
        stopped.set()
        responses = [await finish(streams) for streams in accepted]
        assert [response.split(b"\r\n")[0] for response in responses] == [b"HTTP/1.1 200 OK"] * 20
        await asyncio.gather(*senders)
        assert await server.wait() == 0
    assert set(statuses) == {200}


async def test_killed_server_can_restart_on_its_port_at_once(model_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with asyncio.timeout(60):
        async with serving(model_path, port) as (server, client):
            begun = [await begin(client) for _ in range(20)]
            await client.until("centernet_body_bytes", 20 * _HALF)
            server.kill()
            for reader, writer in begun:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        async with serving(model_path, port) as (_, client):
            response = await client.detect()
            assert response.json()["detections"] == [RED_FOUND, GREEN_FOUND]


async def test_uploads_are_not_written_to_disk(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    assert len(file.getvalue()) > 8_000_000  # more than form parsers keep in memory
    no_files = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh"]
    async with serving(model_path, before=no_files) as (_, client):
        response = await client.post("/detect", files={"image": file.getvalue()})
        assert response.status_code == 200
        response = await client.post("/detect/batch", files={"large": file.getvalue(), "small": PHOTO_PNG})
        assert response.json()["results"][1]["detections"] == [RED_FOUND, GREEN_FOUND]


async def test_bodies_are_freed_when_two_hundred_clients_disconnect_during_upload(
    make_settings: Make, model_path: Path
) -> None:
    async with listen(make_settings(), Detector(model_path, "cpu", 1)) as client:
        begun = [await begin(client) for _ in range(200)]
        await client.until("centernet_body_bytes", 200 * _HALF)
        for number, (_, writer) in enumerate(begun):
            if number % 2:
                writer.transport.abort()
            else:
                writer.close()
        await client.until("centernet_body_bytes", 0)
        assert await client.sample("centernet_rejections_total", reason="client-gone") == 200
        assert await client.sample("centernet_requests_in_flight") == 0
        assert (await client.detect()).json()["detections"] == [RED_FOUND, GREEN_FOUND]

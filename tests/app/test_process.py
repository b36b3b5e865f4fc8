"""Behaviour that needs a real socket or process."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Settings
from model.detector import Detector
from tests.app.colours import GREEN_FOUND, PHOTO_PNG, RED_FOUND
from tests.app.detectors import HeldDetector
from tests.app.listener import listen

pytestmark = pytest.mark.anyio
Make = Callable[..., Settings]


_BATCH = json.dumps({"images": [base64.b64encode(PHOTO_PNG).decode()] * 3}).encode()


@pytest.mark.parametrize(
    ("route", "content_type", "body", "images"),
    [("/detect", "image/png", PHOTO_PNG, 1), ("/detect/batch", "application/json", _BATCH, 3)],
    ids=["one", "batch"],
)
async def test_request_of_a_disconnected_client_is_not_computed(
    make_settings: Make, model_path: Path, route: str, content_type: str, body: bytes, images: int
) -> None:
    detector = HeldDetector(model_path)
    async with listen(make_settings(), detector) as client:
        await client.detect()
        detector.batches.clear()
        detector.gate.clear()
        first = asyncio.create_task(client.detect())
        await client.until("centernet_batch_size_count", 2)

        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = (
            f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await client.until("centernet_queue_depth", images)
        assert await client.sample("centernet_requests_in_flight") == 1 + images
        writer.close()
        await client.until("centernet_requests_in_flight", 1)
        assert await client.sample("centernet_requests_total", route=route, status="499") == 1

        detector.gate.set()
        assert (await first).status_code == 200
        await client.detect()
        assert detector.batches == [1, 1]


async def test_body_is_freed_when_its_client_disconnects(make_settings: Make, model_path: Path) -> None:
    async with listen(make_settings(), Detector(model_path, "cpu", 1)) as client:
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        await client.until("centernet_body_bytes", 3)
        writer.close()
        await client.until("centernet_body_bytes", 0)
        assert await client.sample("centernet_rejections_total", reason="client-gone") == 1


async def test_body_over_the_limit_is_refused_before_it_is_sent(make_settings: Make, model_path: Path) -> None:
    async with listen(make_settings(max_image_bytes=1000), Detector(model_path, "cpu", 1)) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        too_long = await client.detect(b"x" * 5_000_000)
        assert too_long.status_code == 413
        assert (await client.detect()).status_code == 200


def test_command_serves_until_sigterm(model_path: Path) -> None:
    options = ["--port=0", "--metrics-port=0", f"--model={model_path}", "--provider=cpu", "--threads=1"]
    command = [sys.executable, "-m", "app", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("centernet-serve: colours on cpu at http://127.0.0.1:")
            with urllib.request.urlopen(line.split()[-1] + "/detect", data=PHOTO_PNG) as response:
                assert json.load(response)["detections"] == [RED_FOUND, GREEN_FOUND]
            second = server.stdout.readline()
            assert second.startswith("centernet-serve: metrics at http://127.0.0.1:")
            with urllib.request.urlopen(second.split()[-1] + "/metrics") as response:
                assert b'centernet_detections_total{label="red",model="colours"} 1.0' in response.read()
        finally:
            server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
    assert server.returncode == 0
    assert "Traceback" not in log

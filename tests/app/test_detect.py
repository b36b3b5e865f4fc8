import asyncio
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.detector import Detector
from tests.app.client import Client, Serve
from tests.app.colours import (
    BLUE_FOUND,
    GREEN,
    GREEN_FOUND,
    PHOTO,
    PHOTO_PNG,
    RED_FOUND,
    box,
    describe,
    encode,
    paint,
    save_model,
)
from tests.app.detectors import HeldDetector, OutOfMemoryDetector

pytestmark = pytest.mark.anyio


async def test_response_is_exact(client: Client) -> None:
    response = await client.detect()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    timings = answer.pop("timings_ms")
    assert answer == {
        "model": "colours",
        "image": {"width": 192, "height": 128},
        "detections": [RED_FOUND, GREEN_FOUND],
    }
    assert set(timings) == {"decode", "queue", "inference", "total"}
    assert 0 < timings["decode"] + timings["queue"] + timings["inference"] <= timings["total"] + 0.002


async def test_image_without_objects_gives_an_empty_list(client: Client) -> None:
    assert (await client.detect(encode(paint(30, 20)))).json()["detections"] == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"threshold": 0}, [RED_FOUND, GREEN_FOUND, BLUE_FOUND]),
        ({"threshold": 0.6}, [RED_FOUND, GREEN_FOUND]),
        ({"threshold": 0.61}, [RED_FOUND]),
        ({"threshold": 1}, []),
        ({"threshold": 0, "limit": 2}, [RED_FOUND, GREEN_FOUND]),
        ({"threshold": 0, "limit": 1, "labels": "blue,green"}, [GREEN_FOUND]),
        ({"threshold": 0, "labels": "blue"}, [BLUE_FOUND]),
        ({"labels": " green , red "}, [RED_FOUND, GREEN_FOUND]),
        ({"labels": "blue"}, []),
        ({"threshold": 0, "labels": ["blue", "green,red"]}, [RED_FOUND, GREEN_FOUND, BLUE_FOUND]),
    ],
)
async def test_threshold_limit_and_labels_filter_the_detections(
    client: Client, query: dict[str, Any], found: list[Any]
) -> None:
    assert (await client.detect(**query)).json()["detections"] == found


async def test_defaults_come_from_the_settings(serve: Serve) -> None:
    async with serve(threshold=0.1, limit=2) as client:
        assert (await client.detect()).json()["detections"] == [RED_FOUND, GREEN_FOUND]
        assert (await client.detect(limit=3)).json()["detections"] == [RED_FOUND, GREEN_FOUND, BLUE_FOUND]


async def test_default_threshold_comes_from_the_models_metadata(serve: Serve, tmp_path: Path) -> None:
    path = save_model(tmp_path / "own.onnx", describe(threshold=0.15).to_properties())
    async with serve(Detector(path, "cpu", 1)) as client:
        assert (await client.detect()).json()["detections"] == [RED_FOUND, GREEN_FOUND, BLUE_FOUND]
        assert (await client.get("/models")).json()["models"][0]["threshold"] == 0.15
        assert (await client.detect(threshold=0.7)).json()["detections"] == [RED_FOUND]
    async with serve(Detector(path, "cpu", 1), threshold=0.7) as client:  # the setting overrides the metadata
        assert (await client.detect()).json()["detections"] == [RED_FOUND]


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_exif_orientation_is_applied(client: Client, orientation: int) -> None:
    turns = [
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ]
    turn = turns[orientation - 1]
    stored = Image.fromarray(PHOTO)
    if turn is not None:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    answer = (await client.detect(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0))).json()
    assert answer["image"] == {"width": 192, "height": 128}
    assert answer["detections"] == [RED_FOUND, GREEN_FOUND]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
async def test_every_format_gives_the_same_detections(client: Client, kind: str) -> None:
    assert (await client.detect(encode(PHOTO, kind))).json()["detections"] == [RED_FOUND, GREEN_FOUND]


@pytest.mark.parametrize(
    "content_type", [None, "image/png", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded"]
)
async def test_raw_body_may_have_any_content_type(client: Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await client.post("/detect", content=PHOTO_PNG, headers=headers)
    assert response.json()["detections"] == [RED_FOUND, GREEN_FOUND]


@pytest.mark.parametrize("name", ["image", "file", "x"])
async def test_form_field_may_have_any_name(client: Client, name: str) -> None:
    response = await client.post("/detect", files={name: ("photo", PHOTO_PNG)}, data={"min_confidence": "0.4"})
    assert response.json()["detections"] == [RED_FOUND, GREEN_FOUND]


async def test_form_file_over_a_megabyte_is_read_whole(client: Client) -> None:
    bitmap = encode(paint(1200, 800, (GREEN, (600, 400, 1200, 800))), "BMP")
    assert len(bitmap) > 2**21
    response = await client.post("/detect", files={"image": ("photo.bmp", bitmap)})
    assert response.json()["detections"] == [GREEN_FOUND | {"box": box(600, 400, 1200, 800)}]


async def test_requests_in_the_queue_share_a_batch(serve: Serve, model_path: Path) -> None:
    detector = HeldDetector(model_path)
    async with serve(detector, max_batch=3) as client:
        await client.detect()  # returns after the warm-up
        detector.batches.clear()
        detector.gate.clear()
        photos = [PHOTO_PNG] + [encode(paint(192, 128, (GREEN, (0, 0, 16 * n, 16 * n)))) for n in range(1, 6)]
        first = asyncio.create_task(client.detect(photos[0]))
        await client.until("centernet_batch_size_count", 2)
        others = [asyncio.create_task(client.detect(photo)) for photo in photos[1:]]
        await client.until("centernet_queue_depth", 5)
        detector.gate.set()
        answers = [response.json()["detections"] for response in await asyncio.gather(first, *others)]
        assert detector.batches == [1, 3, 2]
        assert answers[0] == [RED_FOUND, GREEN_FOUND]
        assert answers[1:] == [[GREEN_FOUND | {"box": box(0, 0, 16 * n, 16 * n)}] for n in range(1, 6)]
        assert await client.sample("centernet_batch_size_count") == 4
        assert await client.sample("centernet_batch_size_sum") == 7


async def test_failing_batch_fails_only_its_own_requests(serve: Serve, model_path: Path) -> None:
    white = encode(Image.new("RGB", (96, 64), "white"))
    async with serve(OutOfMemoryDetector(model_path, "cpu", 1)) as client:
        await client.detect()
        failed = await client.detect(white)
        assert failed.status_code == 500
        assert failed.json()["type"] == "/docs#inference-failed"
        assert "memory" not in failed.text
        assert (await client.detect()).json()["detections"] == [RED_FOUND, GREEN_FOUND]
        assert (await client.get("/health/live")).status_code == 200

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from PIL import Image

from tests.app.client import Client, Serve, check_problem
from tests.app.colours import BLUE_FOUND, GREEN, GREEN_FOUND, PHOTO, PHOTO_PNG, RED_FOUND, box, encode, paint
from tests.app.detectors import CrashingDetector, HeldDetector, OutOfMemoryDetector

pytestmark = pytest.mark.anyio

GREEN_PNG = encode(paint(48, 32, (GREEN, (0, 0, 24, 16))))
GREEN_ALONE = GREEN_FOUND | {"box": box(0, 0, 24, 16)}
TRUNCATED = encode(PHOTO, "JPEG")[:-400]


async def send(client: Client, *images: bytes, **query: Any) -> Response:
    files = [(f"part{index}", (f"{index}.png", image)) for index, image in enumerate(images)]
    return await client.post("/detect/batch", files=files, params=query)


def to_json(*images: bytes) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(image).decode() for image in images]}


async def test_results_are_in_order_and_equal_those_of_detect(client: Client) -> None:
    response = await send(client, GREEN_PNG, PHOTO_PNG)
    assert response.status_code == 200
    results = response.json()["results"]
    for result in results:
        assert set(result.pop("timings_ms")) == {"decode", "queue", "inference", "total"}
    assert results == [
        {"model": "colours", "image": {"width": 48, "height": 32}, "detections": [GREEN_ALONE]},
        {"model": "colours", "image": {"width": 192, "height": 128}, "detections": [RED_FOUND, GREEN_FOUND]},
    ]


async def test_images_can_be_sent_as_base64_in_json(client: Client) -> None:
    response = await client.post("/detect/batch", json=to_json(PHOTO_PNG, GREEN_PNG), params={"threshold": 0})
    found = [result["detections"] for result in response.json()["results"]]
    assert found == [[RED_FOUND, GREEN_FOUND, BLUE_FOUND], [GREEN_ALONE]]


async def test_query_parameters_apply_to_every_image(client: Client) -> None:
    results = (await send(client, PHOTO_PNG, PHOTO_PNG, threshold=0, limit=1, labels="blue,green")).json()["results"]
    assert [result["detections"] for result in results] == [[GREEN_FOUND], [GREEN_FOUND]]


async def test_invalid_images_do_not_fail_the_others(serve: Serve) -> None:
    async with serve(max_pixels=192 * 128) as client:
        response = await send(client, TRUNCATED, GREEN_PNG, b"hello", encode(paint(193, 128)), b"")
        results = response.json()["results"]
        headers = {**response.headers, "content-type": "application/problem+json"}
        assert results[1]["detections"] == [GREEN_ALONE]
        for index, status, reason in [
            (0, 422, "broken-image"),
            (2, 415, "unknown-format"),
            (3, 413, "too-many-pixels"),
            (4, 415, "unknown-format"),
        ]:
            check_problem(Response(status, json=results[index], headers=headers), status, reason)
        assert await client.sample("centernet_rejections_total", reason="unknown-format") == 2
        assert await client.sample("centernet_requests_total", route="/detect/batch", status="200") == 1


async def test_failed_inference_fails_only_the_images_of_its_batch(serve: Serve, model_path: Path) -> None:
    white = encode(Image.new("RGB", (96, 64), "white"))
    async with serve(OutOfMemoryDetector(model_path, "cpu", 1), max_batch=1) as client:
        results = (await send(client, white, PHOTO_PNG)).json()["results"]
        assert (results[0]["type"], results[0]["status"]) == ("/docs#inference-failed", 500)
        assert results[1]["detections"] == [RED_FOUND, GREEN_FOUND]


async def test_unexpected_error_fails_the_request(serve: Serve, model_path: Path) -> None:
    async with serve(CrashingDetector(model_path, "cpu", 1)) as client:
        check_problem(await send(client, PHOTO_PNG, PHOTO_PNG), 500, "internal-error")
        assert await client.sample("centernet_requests_in_flight") == 0


async def test_empty_and_malformed_bodies_are_refused(client: Client) -> None:
    check_problem(await client.post("/detect/batch"), 400, "empty-body")
    check_problem(await client.post("/detect/batch", json={"images": []}), 400, "empty-body")
    for body in ({}, [], {"images": [1]}, {"images": ["?"]}, {"images": None}):
        check_problem(await client.post("/detect/batch", json=body), 400, "invalid-json")
    headers = {"content-type": "application/json"}
    check_problem(await client.post("/detect/batch", content=b"{", headers=headers), 400, "invalid-json")
    many = b'{"images": [%b]}' % b",".join([b"[]"] * 5000)
    check_problem(
        await client.post("/detect/batch", content=many, headers=headers), 400, "invalid-json", "10000 values"
    )


async def test_other_fields_of_the_json_are_refused(client: Client) -> None:
    response = await client.post("/detect/batch", json=to_json(PHOTO_PNG) | {"limit": 1})
    check_problem(response, 400, "invalid-json", "there is no field 'limit'; parameters are in the query")


async def test_json_needs_no_content_type(client: Client) -> None:
    content = json.dumps(to_json(PHOTO_PNG)).encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    [result] = (await client.post("/detect/batch", content=content, headers=headers)).json()["results"]
    assert result["detections"] == [RED_FOUND, GREEN_FOUND]


async def test_numbers_of_images_and_bytes_are_limited(serve: Serve) -> None:
    size = len(encode(paint(48, 32)))
    async with serve(max_request_images=2, max_request_bytes=4000, max_image_bytes=size) as client:
        assert (await send(client, GREEN_PNG, GREEN_PNG)).status_code == 200
        check_problem(
            await send(client, GREEN_PNG, GREEN_PNG, GREEN_PNG), 413, "too-many-images", "holds 3 images, and 2"
        )
        check_problem(await send(client, b"x" * 4000), 413, "body-too-large", "4000")
    async with serve(max_queue=2) as client:
        check_problem(
            await send(client, GREEN_PNG, GREEN_PNG, GREEN_PNG), 413, "too-many-images", "holds 3 images, and 2"
        )


async def test_requests_take_no_queue_slot_while_their_bodies_arrive(serve: Serve) -> None:
    arrive = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield PHOTO_PNG[:100]
        await arrive.wait()
        yield PHOTO_PNG[100:]

    async with serve(max_queue=3) as client:
        slow = [asyncio.create_task(client.post("/detect/batch", content=stream())) for _ in range(3)]
        await client.until("centernet_body_bytes", 3 * 100)
        assert await client.sample("centernet_requests_in_flight") == 0
        assert (await client.detect()).status_code == 200
        arrive.set()
        for response in await asyncio.gather(*slow):
            assert response.json()["results"][0]["detections"] == [RED_FOUND, GREEN_FOUND]
        assert await client.sample("centernet_body_bytes") == 0


async def test_stalled_upload_is_aborted_to_free_memory(serve: Serve) -> None:
    stay = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield PHOTO_PNG[:100]
        await stay.wait()

    length = len(PHOTO_PNG)
    limits = {"max_image_bytes": length, "max_request_bytes": length, "max_held_bytes": length + 100}
    async with serve(**limits) as client:
        first, second = (asyncio.create_task(client.post("/detect", content=stream())) for _ in range(2))
        await client.until("centernet_body_bytes", 200)
        assert (await client.detect()).status_code == 200
        check_problem(await first, 408, "slow-body", "aborted to free memory")
        await client.until("centernet_body_bytes", 100)
        stay.set()
        check_problem(await second, 422, "broken-image")
        await client.until("centernet_body_bytes", 0)


async def test_bodies_of_requests_in_flight_are_not_aborted_to_free_memory(serve: Serve, model_path: Path) -> None:
    length, detector = len(PHOTO_PNG), HeldDetector(model_path)
    limits = {"max_image_bytes": length, "max_request_bytes": length, "max_held_bytes": length + 100}
    async with serve(detector, **limits) as client:
        await client.detect()
        detector.gate.clear()
        held = asyncio.create_task(client.detect())
        await client.until("centernet_body_bytes", length)
        refused = await client.detect()
        check_problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        detector.gate.set()
        assert (await held).status_code == 200


async def test_every_image_takes_a_queue_slot(serve: Serve, model_path: Path) -> None:
    detector = HeldDetector(model_path)
    async with serve(detector, max_queue=4, max_batch=8) as client:
        await client.detect()
        detector.batches.clear()
        detector.gate.clear()
        first = asyncio.create_task(client.detect())
        await client.until("centernet_batch_size_count", 2)
        held = asyncio.create_task(send(client, PHOTO_PNG, GREEN_PNG))
        await client.until("centernet_queue_depth", 2)
        assert await client.sample("centernet_requests_in_flight") == 3
        refused = await send(client, PHOTO_PNG, GREEN_PNG)
        check_problem(refused, 503, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        detector.gate.set()
        assert (await first).status_code == 200
        assert len((await held).json()["results"]) == 2
        assert detector.batches == [1, 2]
        assert await client.sample("centernet_requests_in_flight") == 0

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.app.client import Client, Serve, check_problem
from tests.app.colours import PHOTO, PHOTO_PNG, encode, paint
from tests.app.detectors import CrashingDetector, HeldDetector

pytestmark = pytest.mark.anyio


async def test_empty_body_is_refused(client: Client) -> None:
    check_problem(await client.post("/detect"), 400, "empty-body")
    check_problem(await client.post("/detect", files={"image": ("empty", b"")}), 400, "empty-body")


async def test_form_without_a_file_is_refused(client: Client) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--b--\r\n'
    check_problem(await client.post("/detect", content=body, headers=headers), 400, "invalid-form", "no files")


async def test_form_with_two_files_is_refused(client: Client) -> None:
    files = {"a": ("a", PHOTO_PNG), "b": ("b", PHOTO_PNG)}
    check_problem(await client.post("/detect", files=files), 400, "invalid-form", "2 files")


async def test_number_of_form_parts_is_limited(client: Client) -> None:
    files, fields = {"image": ("image", PHOTO_PNG)}, {f"field{index}": "" for index in range(20)}
    assert (await client.post("/detect", files=files, data=fields)).status_code == 200
    refused = await client.post("/detect", files=files, data={**fields, "another": ""})
    check_problem(refused, 400, "invalid-form", "more than 21 parts")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b"nonsense"),
        (f"multipart/form-data; boundary={'b' * 300}", b""),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\n\r\n--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\nabc',
        ),
    ],
)
async def test_malformed_form_is_refused(client: Client, content_type: str, body: bytes) -> None:
    response = await client.post("/detect", content=body, headers={"content-type": content_type})
    check_problem(response, 400, "invalid-form")


@pytest.mark.parametrize("path", ["/detect", "/detect/batch"])
async def test_compressed_body_is_refused(client: Client, path: str) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    response = await client.post(path, content=gzip.compress(PHOTO_PNG), headers=headers)
    check_problem(response, 415, "unknown-encoding", "without Content-Encoding")
    assert response.headers["accept-encoding"] == "identity"
    plain = await client.post("/detect", content=PHOTO_PNG, headers={"content-encoding": "identity"})
    assert plain.status_code == 200


async def test_body_over_the_limit_is_refused(serve: Serve) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 500

    async with serve(max_image_bytes=1000) as client:
        check_problem(await client.detect(b"x" * 1001), 413, "body-too-large", "1000")
        check_problem(await client.post("/detect", content=stream()), 413, "body-too-large", "1000")
        check_problem(await client.post("/detect", files={"image": ("i", b"x" * 1001)}), 413, "body-too-large", "1000")
        check_problem(await client.detect(b"x" * 1000), 415, "unknown-format")


async def test_stalled_body_times_out(serve: Serve) -> None:
    async def stall() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async with serve(body_timeout_seconds=0.01) as client:
        check_problem(await client.post("/detect", content=stall()), 408, "slow-body", "0.01 s")


async def test_image_with_too_many_pixels_is_refused(serve: Serve) -> None:
    async with serve(max_pixels=192 * 128) as client:
        assert (await client.detect(PHOTO_PNG)).status_code == 200
        check_problem(await client.detect(encode(paint(193, 128))), 413, "too-many-pixels", "193 x 128")
        check_problem(await client.detect(encode(Image.new("1", (12_000, 12_000)))), 413, "too-many-pixels")


async def test_unknown_format_is_refused(client: Client) -> None:
    check_problem(await client.detect(b"hello"), 415, "unknown-format", "JPEG, PNG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
async def test_truncated_image_is_refused(client: Client, kind: str) -> None:
    data = encode(PHOTO, kind)
    check_problem(await client.detect(data[: len(data) * 3 // 4]), 422, "broken-image")


@pytest.mark.parametrize("form", [False, True])
async def test_unknown_label_is_refused(client: Client, form: bool) -> None:
    body: dict[str, Any] = {"files": {"i": ("i", PHOTO_PNG)}} if form else {"content": PHOTO_PNG}
    response = await client.post("/detect", params={"labels": "red,pink"}, **body)
    check_problem(response, 422, "unknown-label", "unknown: 'pink'; the model knows: red, green, blue")


@pytest.mark.parametrize(
    "query",
    [
        {"threshold": -0.1},
        {"threshold": 1.1},
        {"threshold": "nan"},
        {"threshold": "high"},
        {"limit": 0},
        {"timeout": 0},
        {"timeout": "nan"},
        {"limit": 1.5},
    ],
)
async def test_invalid_parameter_is_refused(client: Client, query: dict[str, Any]) -> None:
    check_problem(await client.detect(**query), 422, "invalid-parameter", next(iter(query)))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("treshold", "did you mean threshold?"), ("min_score", "there are timeout, model, threshold, limit, labels")],
)
async def test_unknown_parameter_is_refused(client: Client, name: str, hint: str) -> None:
    detail = f"{name}: there is no such parameter; {hint}"
    check_problem(await client.detect(**{name: "0.5"}), 422, "invalid-parameter", detail)


@pytest.mark.parametrize("path", ["/detect", "/detect/batch"])
async def test_parameter_in_a_form_is_refused_and_other_fields_are_not(client: Client, path: str) -> None:
    files = {"image": ("i", PHOTO_PNG)}
    response = await client.post(path, files=files, data={"threshold": "0.5"})
    check_problem(response, 400, "invalid-form", "send threshold in the query, as in ?threshold=…, not in")
    assert (await client.post(path, files=files, data={"camera": "door"})).status_code == 200


async def test_full_queue_is_refused(serve: Serve, model_path: Path) -> None:
    detector = HeldDetector(model_path)
    async with serve(detector, max_queue=2) as client:
        await client.detect()
        detector.gate.clear()
        held = [asyncio.create_task(client.detect()) for _ in range(2)]
        await client.until("centernet_requests_in_flight", 2)
        refused = await client.detect()
        check_problem(refused, 503, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert await client.sample("centernet_requests_total", route="/detect", status="503") == 1
        assert (await client.get("/health/ready")).status_code == 200
        detector.gate.set()
        assert [response.status_code for response in await asyncio.gather(*held)] == [200, 200]
        assert (await client.detect()).status_code == 200


async def test_unknown_path_and_method_are_refused(client: Client) -> None:
    for response, status, title in [
        (await client.get("/nothing"), 404, "Not Found"),
        (await client.get("/detect"), 405, "Method Not Allowed"),
    ]:
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem.pop("request_id") == response.headers["x-request-id"]
        assert problem == {"type": "about:blank", "title": title, "status": status, "detail": title}
    assert response.headers["allow"] == "POST"


async def test_unexpected_error_does_not_reveal_its_message(serve: Serve, model_path: Path) -> None:
    async with serve(CrashingDetector(model_path, "cpu", 1)) as client:
        response = await client.detect()
        check_problem(response, 500, "internal-error")
        assert "secret" not in response.text
        assert await client.sample("centernet_requests_total", route="/detect", status="500") == 1

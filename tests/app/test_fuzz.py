"""Corrupted images and random bodies are refused with a reason, and never cause a server error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.settings import Settings
from model.detector import Detector
from tests.app.colours import PHOTO_PNG, encode, paint
from tests.app.listener import listen_in_thread

_IMAGE = paint(40, 30, ((255, 0, 0), (4, 4, 20, 20)))
_FILES = [encode(_IMAGE, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")]
_REFUSED = {400, 406, 408, 413, 415, 422}


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[httpx.Client]:
    chosen = Settings(model=(model_path,), provider="cpu", threads=1, decode_threads=2, max_pixels=1_000_000)
    with listen_in_thread(chosen, Detector(model_path, "cpu", 1)) as url, httpx.Client(base_url=url) as client:
        yield client


def examples(count: int) -> Any:
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def corrupted_images(draw: st.DrawFn) -> bytes:
    """An image file with bytes changed, deleted, inserted or repeated."""
    data = bytearray(draw(st.sampled_from(_FILES)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["change", "cut", "insert", "repeat", "end"]))
        if kind == "change":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 30))
        else:
            del data[at:]
    return bytes(data)


def check(response: httpx.Response) -> None:
    if response.status_code != 200:
        assert response.status_code in _REFUSED
        assert response.json()["detail"]


@examples(300)
@given(data=corrupted_images())
def test_corrupted_images_are_read_or_refused(server: httpx.Client, data: bytes) -> None:
    check(server.post("/detect", content=data))


@examples(100)
@given(files=st.lists(corrupted_images(), min_size=1, max_size=4))
def test_each_corrupted_image_of_a_batch_has_its_own_result(server: httpx.Client, files: list[bytes]) -> None:
    response = server.post("/detect/batch", files=[("images", ("x", data)) for data in [*files, PHOTO_PNG]])
    assert response.status_code == 200
    *_, whole = results = response.json()["results"]
    assert len(results) == len(files) + 1
    assert len(whole["detections"]) == 2
    assert all("detections" in result or result["status"] in _REFUSED for result in results)


@examples(200)
@given(
    body=st.binary(max_size=400)
    | st.binary(max_size=200).map(
        lambda data: b'--x\r\nContent-Disposition: form-data; name="image"' + data + b"--x--"
    ),
    content_type=st.sampled_from(
        ["multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary=", "application/json"]
    ),
    path=st.sampled_from(["/detect", "/detect/batch"]),
)
def test_random_bodies_are_refused(server: httpx.Client, body: bytes, content_type: str, path: str) -> None:
    response = server.post(path, content=body, headers={"content-type": content_type})
    assert response.status_code in _REFUSED
    assert response.json()["detail"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@examples(200)
@given(
    tensor=st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["image", "pixels"]) | _VALUES,
            "shape": st.lists(st.integers(-2, 5), max_size=4) | _VALUES,
            "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]) | _VALUES,
            "data": st.lists(st.integers(-1, 300) | st.text(max_size=5), max_size=20) | _VALUES,
            "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers() | _VALUES}),
        },
    ),
    length=st.none() | st.integers(-5, 300) | st.text("0123456789abc-", max_size=5),
    tail=st.binary(max_size=60),
)
def test_random_tensors_are_read_or_refused(
    server: httpx.Client, tensor: dict[str, Any], length: Any, tail: bytes
) -> None:
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    response = server.post("/v2/models/colours/infer", content=body + tail, headers=headers)
    assert response.status_code in _REFUSED | {200}
    assert response.status_code == 200 or response.json()["error"]


def test_intact_images_are_read(server: httpx.Client) -> None:
    for data in _FILES:
        assert server.post("/detect", content=data).status_code == 200

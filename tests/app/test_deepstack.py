import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from codeprojectai.core import CodeProjectAIObject
from deepstack.core import DeepstackException, DeepstackObject
from httpx import Response

from app.settings import Settings
from model.detector import Detector
from tests.app.client import Client, Serve
from tests.app.colours import GREEN, PHOTO_PNG, encode, paint
from tests.app.listener import listen

pytestmark = pytest.mark.anyio

RED = {"label": "red", "confidence": 0.9, "x_min": 32, "y_min": 16, "x_max": 96, "y_max": 64}
GREEN_BOX = {"label": "green", "confidence": 0.6, "x_min": 112, "y_min": 80, "x_max": 176, "y_max": 112}
BLUE = {"label": "blue", "confidence": 0.2, "x_min": 16, "y_min": 96, "x_max": 48, "y_max": 112}


async def send(client: Client, data: bytes = PHOTO_PNG, route: str = "detection", **fields: str) -> Response:
    return await client.post(f"/v1/vision/{route}", files={"image": data}, data=fields)


def check_error(response: Response, status: int, words: str) -> None:
    answer = response.json()
    assert words in answer.pop("error")
    assert answer == {"success": False, "code": status, "count": 0, "predictions": []}
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")


@pytest.mark.parametrize("client_class", [DeepstackObject, CodeProjectAIObject])
@pytest.mark.parametrize("custom_model", ["", "colours"])
async def test_client_libraries_are_served(
    make_settings: Callable[..., Settings], model_path: Path, client_class: Any, custom_model: str
) -> None:
    async with listen(make_settings(), Detector(model_path, "cpu", 1)) as client:
        port = client.base_url.port
        default = client_class("127.0.0.1", port, custom_model=custom_model)
        assert await asyncio.to_thread(default.detect, PHOTO_PNG) == [RED, GREEN_BOX]
        permissive = client_class("127.0.0.1", port, min_confidence=0.1, custom_model=custom_model)
        assert await asyncio.to_thread(permissive.detect, PHOTO_PNG) == [RED, GREEN_BOX, BLUE]


async def test_client_library_raises_on_refusal(make_settings: Callable[..., Settings], model_path: Path) -> None:
    async with listen(make_settings(), Detector(model_path, "cpu", 1)) as client:
        deepstack = DeepstackObject("127.0.0.1", client.base_url.port)
        with pytest.raises(DeepstackException, match="415"):
            await asyncio.to_thread(deepstack.detect, b"hello")


async def test_response_is_exact(client: Client) -> None:
    response = await send(client, min_confidence="0.1", api_key="secret")
    answer = response.json()
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert all(isinstance(answer.pop(name), int) for name in ("inferenceMs", "processMs"))
    assert answer == {"success": True, "code": 200, "count": 3, "predictions": [RED, GREEN_BOX, BLUE]}


async def test_boxes_are_whole_pixels_inside_the_image(client: Client) -> None:
    # ten input pixels cover three of the image, so that edges fall between pixels
    answer = (await send(client, encode(paint(29, 19, (GREEN, (10, 7, 29, 19)))))).json()
    [found] = answer["predictions"]
    assert all(isinstance(found[edge], int) for edge in ("x_min", "y_min", "x_max", "y_max"))
    assert (found["x_min"], found["y_min"], found["x_max"], found["y_max"]) == (10, 7, 29, 19)


async def test_image_part_needs_no_filename_or_content_type(client: Client) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="min_confidence"\r\n\r\n0.7\r\n'
    for name in (b'name="image"', b'name="image"; filename="x.jpg"', b'name="file"; filename=""'):
        body = head + b"--b\r\nContent-Disposition: form-data; " + name + b"\r\n\r\n" + PHOTO_PNG + b"\r\n--b--\r\n"
        headers = {"content-type": "multipart/form-data; boundary=b"}
        response = await client.post("/v1/vision/detection", content=body, headers=headers)
        assert response.json()["predictions"] == [RED]


async def test_number_of_predictions_is_limited(serve: Serve) -> None:
    async with serve(deepstack_limit=1) as client:
        assert (await send(client, min_confidence="0")).json()["predictions"] == [RED]
        assert (await send(client, route="detection?limit=2", min_confidence="0")).json()["count"] == 2
        highest = (await send(client, min_confidence="1")).json()
        assert (highest["success"], highest["count"]) == (True, 0)
        check_error(await send(client, route="detection?limit=0"), 422, "limit")


async def test_query_parameters_apply(client: Client) -> None:
    for query, form, found in [
        ("threshold=0.1&labels=blue", {}, [BLUE]),
        ("threshold=0.1", {"min_confidence": "0.7"}, [RED]),
        ("threshold=0.1", {"min_confidence": ""}, [RED, GREEN_BOX, BLUE]),
        ("threshold=0.1", {"min_confidence": "1"}, []),
        ("model=colours&healthcheck", {}, [RED, GREEN_BOX]),
    ]:
        assert (await send(client, route=f"detection?{query}", **form)).json()["predictions"] == found
    check_error(await send(client, route="detection?treshold=0.1"), 422, "did you mean threshold?")
    check_error(await send(client, route="detection?model=other"), 404, "there is no model 'other'")
    check_error(await send(client, route="detection?labels=pink"), 422, "unknown: 'pink'")
    check_error(await send(client, route="detection?healthcheck=&limit"), 422, "limit: Input should be a valid integer")
    check_error(await send(client, route="custom/colours?model=colours"), 422, "model: the path names the model")


async def test_models_are_listed_and_unknown_names_refused(client: Client) -> None:
    response = await client.post("/v1/vision/custom/list")
    assert response.json() == {"success": True, "code": 200, "models": ["colours"]}
    check_error(await send(client, route="custom/other"), 404, "there is no model 'other'; there is 'colours'")


async def test_errors_have_the_format_of_the_api(client: Client) -> None:
    check_error(await send(client, b"hello"), 415, "JPEG, PNG")
    check_error(await send(client, b""), 400, "empty")
    check_error(await client.post("/v1/vision/detection", files={"min_confidence": (None, "0.5")}), 400, "no images")
    check_error(await client.post("/v1/vision/detection", files={"a": b"x", "b": b"y"}), 400, "2 images")
    for wrong in ("high", "nan", "40", "-1"):
        check_error(await send(client, min_confidence=wrong), 400, "min_confidence")
    check_error(await client.post("/v1/vision/face", files={"image": PHOTO_PNG}), 404, "Not Found")
    assert await client.sample("centernet_rejections_total", reason="unknown-format") == 1

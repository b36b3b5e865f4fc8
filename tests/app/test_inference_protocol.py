import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from httpx import Response
from tritonclient.utils import InferenceServerException

from app import __version__
from app.settings import Settings
from model.detector import Detector
from tests.app.client import Client, Serve
from tests.app.colours import GREEN, PHOTO, PHOTO_PNG, encode, paint
from tests.app.listener import listen

pytestmark = pytest.mark.anyio

RED_BOX, GREEN_BOX, BLUE_BOX = [32, 16, 96, 64], [112, 80, 176, 112], [16, 96, 48, 112]
SMALL = paint(48, 32, (GREEN, (0, 0, 24, 16)))


@pytest.fixture
async def address(make_settings: Callable[..., Settings], model_path: Path) -> AsyncIterator[str]:
    async with listen(make_settings(), Detector(model_path, "cpu", 1)) as client:
        yield f"{client.base_url.host}:{client.base_url.port}"


async def call_client(address: str, request: Callable[[triton.InferenceServerClient], Any]) -> Any:
    """Calls `request` with Triton's client, in a single thread, since its event loop belongs to one."""

    def run() -> Any:
        with triton.InferenceServerClient(address) as client:
            return request(client)

    return await asyncio.to_thread(run)


def put(name: str, values: np.ndarray, datatype: str, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


async def test_triton_client_reads_health_and_metadata(address: str) -> None:
    def request(client: triton.InferenceServerClient) -> Any:
        return (
            [client.is_server_live(), client.is_server_ready(), client.is_model_ready("colours")],
            client.is_model_ready("other"),
            client.get_server_metadata(),
            client.get_model_metadata("colours"),
        )

    healthy, other, server, model = await call_client(address, request)
    assert healthy == [True, True, True]
    assert other is False
    assert server == {"name": "centernet-service", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert model == {
        "name": "colours",
        "versions": [],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [
            {"name": "boxes", "datatype": "FP32", "shape": [-1, -1, 4]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "labels", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "names", "datatype": "BYTES", "shape": [-1, -1]},
        ],
    }


async def test_triton_client_sends_encoded_images(address: str) -> None:
    files = np.array([PHOTO_PNG, encode(SMALL)], object)
    result = await call_client(
        address, lambda client: client.infer("colours", [put("image", files, "BYTES")], request_id="7")
    )
    assert result.get_response()["id"] == "7"
    assert result.as_numpy("boxes").tolist() == [[RED_BOX, GREEN_BOX], [[0, 0, 24, 16], [0, 0, 0, 0]]]
    assert result.as_numpy("scores").tolist() == [[np.float32(0.9), np.float32(0.6)], [np.float32(0.6), 0]]
    assert result.as_numpy("labels").tolist() == [[10, 20], [20, -1]]
    assert result.as_numpy("names").tolist() == [[b"red", b"green"], [b"green", b""]]


@pytest.mark.parametrize("binary_input", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
async def test_triton_client_sends_pixels(address: str, binary_input: bool, binary_output: bool) -> None:
    inputs = [put("pixels", PHOTO[None], "UINT8", binary_input)]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in ("names", "boxes")]
    parameters = {"threshold": 0.1, "limit": 3, "labels": "red,green,blue"}
    result = await call_client(
        address, lambda client: client.infer("colours", inputs, outputs=outputs, parameters=parameters)
    )
    assert result.as_numpy("boxes").tolist() == [[RED_BOX, GREEN_BOX, BLUE_BOX]]
    names = [name.decode() if binary_output else name for name in result.as_numpy("names").ravel()]
    assert names == ["red", "green", "blue"]
    assert result.as_numpy("scores") is None


async def test_labels_are_filtered(address: str) -> None:
    inputs = [put("pixels", PHOTO[None], "UINT8")]
    result = await call_client(
        address, lambda client: client.infer("colours", inputs, parameters={"labels": "green,blue"})
    )
    assert result.as_numpy("labels").tolist() == [[20]]


async def test_triton_client_reads_empty_outputs(address: str) -> None:
    inputs = [put("pixels", paint(30, 20)[None], "UINT8")]
    result = await call_client(address, lambda client: client.infer("colours", inputs))
    assert result.as_numpy("boxes").shape == (1, 0, 4)
    assert result.as_numpy("names").shape == (1, 0)


async def test_triton_client_raises_on_refusal(address: str) -> None:
    inputs = [put("image", np.array([b"hello"], object), "BYTES")]
    with pytest.raises(InferenceServerException, match="not an image of a known format") as caught:
        await call_client(address, lambda client: client.infer("colours", inputs))
    assert caught.value.status() == "415"


async def send(client: Client, model: str = "colours", **changes: Any) -> Response:
    data = [base64.b64encode(PHOTO_PNG).decode()]
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": data} | changes
    return await client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})


def check_error(response: Response, status: int, words: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert set(response.json()) == {"error"}
    assert words in response.json()["error"]


async def test_json_request_has_a_json_response(client: Client) -> None:
    response = await send(client)
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer["model_name"] == "colours"
    assert answer["outputs"][0] == {
        "name": "boxes",
        "datatype": "FP32",
        "shape": [1, 2, 4],
        "data": [*RED_BOX, *GREEN_BOX],
    }
    assert answer["outputs"][3] == {"name": "names", "datatype": "BYTES", "shape": [1, 2], "data": ["red", "green"]}


async def test_nulls_are_missing_fields_and_other_servers_parameters_are_ignored(client: Client) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PHOTO_PNG).decode()]}
    inputs = [tensor | {"parameters": {"content_type": "base64", "headers": None}}]
    foreign = {"sequence_id": 1, "sequence_start": True, "sequence_end": False, "priority": 1, "timeout": 1}
    for request in (
        {"id": None, "inputs": [tensor | {"parameters": None}], "outputs": None, "parameters": None},
        {"inputs": inputs, "parameters": foreign | {"content_type": None, "headers": {}, "threshold": None}},
        {"inputs": inputs, "outputs": [{"name": "scores", "parameters": None}]},
    ):
        assert (await client.post("/v2/models/colours/infer", json=request)).status_code == 200


async def test_query_parameters_apply_where_the_json_has_none(client: Client) -> None:
    async def names(query: str, **parameters: Any) -> Any:
        data = [base64.b64encode(PHOTO_PNG).decode()]
        inputs = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}]
        request = {"inputs": inputs, "outputs": [{"name": "names"}], "parameters": parameters}
        return (await client.post(f"/v2/models/colours/infer?{query}", json=request)).json()["outputs"][0]["data"]

    assert await names("threshold=0.1&labels=green&labels=blue") == ["green", "blue"]
    assert await names("threshold=0.1&labels=blue", labels=["red", "green"], limit=1) == ["red"]
    assert await names("threshold=0.7", threshold=0.1, labels="blue") == ["blue"]
    check_error(await client.post("/v2/models/colours/infer?treshold=1"), 422, "did you mean threshold?")
    check_error(await client.post("/v2/models/colours/infer?model=colours"), 422, "model: the path names the model")


async def test_files_may_have_a_batch_axis(client: Client) -> None:
    assert (await send(client, shape=[1, 1])).status_code == 200
    check_error(await send(client, shape=[10**6, 1]), 413, "1000000 images")


async def test_single_image_needs_no_batch_axis(client: Client) -> None:
    response = await send(client, name="pixels", shape=[32, 48, 3], datatype="UINT8", data=SMALL.tolist())
    assert response.json()["outputs"][0]["data"] == [0, 0, 24, 16]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "photo"}, "send `image`"),
        ({"datatype": "FP32"}, "send `image`"),
        ({"shape": [2]}, "does not hold 2 elements"),
        ({"shape": [0]}, "inputs.0.shape.0"),
        ({"shape": [1, 1, 1, 1, 3]}, "inputs.0.shape: List should have at most 4"),
        ({"data": ["?"]}, "base64"),
        ({"data": [7]}, "base64"),
        ({"data": None}, "needs data"),
        ({"parameters": {"binary_data_size": 5}}, "needs data"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2]}, "2 values, not 3"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 256]}, "0 to 255"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 0.5]}, "0 to 255"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[1, 2], [3]]}, "rectangular array"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": []}, "0 to 255"),
    ],
)
async def test_unsuitable_tensors_are_refused(client: Client, changes: dict[str, Any], words: str) -> None:
    check_error(await send(client, **changes), 400, words)


async def test_malformed_requests_are_refused(client: Client) -> None:
    route = "/v2/models/colours/infer"
    check_error(await client.post(route), 400, "Invalid JSON")
    check_error(
        await client.post(route, content=b"{"), 400, "takes: send JSON; binary tensors after it need Inference-"
    )
    check_error(await client.post(route, json={"inputs": []}), 400, "one input")
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    check_error(await client.post(route, json={"inputs": [tensor], "outputs": [{"name": "masks"}]}), 400, "masks")
    check_error(await client.post(route, json={"inputs": [tensor], "parameters": {"limit": 0}}), 400, "limit")
    for parameters, hint in (({"treshold": 1}, "did you mean threshold?"), ({"label": "red"}, "did you mean labels?")):
        check_error(await client.post(route, json={"inputs": [tensor], "parameters": parameters}), 400, hint)
    classes = {"name": "scores", "parameters": {"classification": 3}}
    check_error(await client.post(route, json={"inputs": [tensor], "outputs": [classes]}), 400, "classification is not")
    for length in ("1000000", "-1", "x", "9" * 5000):
        headers = {"inference-header-content-length": length}
        check_error(await client.post(route, content=b"{}", headers=headers), 400, "Content-Length")
    for tail in (b"\x05\0\0\0abcd", b"\x05"):
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(tail)}}]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        check_error(await client.post(route, content=head + tail, headers=headers), 400, "longer than the body")


async def test_size_of_an_error_does_not_grow_with_the_request(client: Client) -> None:
    route, tensor = "/v2/models/colours/infer", {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}
    wanted = {"name": "boxes"}
    check_error(
        await client.post(route, json={"inputs": [tensor], "outputs": [wanted, wanted]}), 400, "requested twice"
    )
    for malformed in (
        {"inputs": [tensor | {"shape": [0] * 1000}]},
        {"inputs": [{}] * 1000},
        {"inputs": [tensor] * 1000},
        {"inputs": [tensor], "outputs": [wanted] * 1000},
        {"inputs": [tensor], "outputs": [{}] * 1000},
        {"inputs": [tensor], "outputs": [{"name": "x" * 1000}]},
    ):
        response = await client.post(route, json=malformed)
        assert response.status_code == 400
        assert len(response.content) < 300


async def test_oversized_requests_are_refused_before_they_are_read(client: Client) -> None:
    route = "/v2/models/colours/infer"
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [10**6, 1, 1, 3]}
    pixels = {"inputs": [tensor | {"parameters": {"binary_data_size": 3 * 10**6}}]}
    elements = {"inputs": [tensor | {"name": "image", "shape": [10**6], "datatype": "BYTES", "data": []}]}
    for request in (pixels, elements):
        head = json.dumps(request).encode()
        body, headers = head + bytes(3 * 10**6), {"inference-header-content-length": str(len(head))}
        check_error(await client.post(route, content=body, headers=headers), 413, "1000000 images")
    few = {"inputs": [tensor | {"name": "image", "shape": [1], "datatype": "BYTES"}]}
    few["inputs"][0]["parameters"] = {"binary_data_size": 4 * 10**6}
    head = json.dumps(few).encode()
    body, headers = head + bytes(4 * 10**6), {"inference-header-content-length": str(len(head))}
    check_error(await client.post(route, content=body, headers=headers), 400, "does not hold 1 elements")
    lists = b'{"inputs": [%b]}' % b",".join([b"[]"] * 2**19)
    check_error(await client.post(route, content=lists), 400, "more than 1048576 values: send the image as a file")


async def test_errors_have_the_format_of_the_api(serve: Serve) -> None:
    async with serve(max_request_images=1, max_request_bytes=10_000, max_pixels=192 * 128) as client:
        check_error(await send(client, model="other"), 404, "there is no model 'other'; there is 'colours'")
        check_error(await send(client, shape=[2], data=["AAAA"] * 2), 413, "2 images")
        check_error(await send(client, data=["A" * 10_000]), 413, "10000 bytes")
        check_error(await client.get("/v2/nothing"), 404, "Not Found")
        assert (await send(client)).status_code == 200
        assert await client.sample("centernet_rejections_total", reason="unknown-model") == 1
        assert await client.sample("centernet_requests_in_flight") == 0

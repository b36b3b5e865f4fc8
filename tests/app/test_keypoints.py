"""Keypoints in responses, tensors, drawn images, model descriptions and the command's output."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.__main__ import main
from model.detector import Detections, Detector
from model.draw import choose_colour, draw_detections
from model.metadata import InvalidModel
from model.skeleton import Skeleton
from tests.app.client import Client, Serve
from tests.app.colours import (
    CORNERS,
    GREEN_FOUND,
    GREY,
    PHOTO,
    PHOTO_PNG,
    RED_FOUND,
    describe,
    encode,
    paint,
    save_model,
)

pytestmark = pytest.mark.anyio

RED_KEYPOINTS = [
    {"name": "upper_left", "x": 32.0, "y": 16.0, "score": 0.9},
    {"name": "lower_right", "x": 96.0, "y": 64.0, "score": 0.9},
]
GREEN_KEYPOINTS = [
    {"name": "upper_left", "x": 112.0, "y": 80.0, "score": 0.6},
    {"name": "lower_right", "x": 176.0, "y": 112.0, "score": 0.6},
]
FOUND = [RED_FOUND | {"keypoints": RED_KEYPOINTS}, GREEN_FOUND | {"keypoints": GREEN_KEYPOINTS}]


@pytest.fixture(scope="module")
def corners_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("corners") / "corners.onnx", with_corners=True)


@pytest.fixture
async def client(serve: Serve, corners_path: Path) -> AsyncIterator[Client]:
    async with serve(Detector(corners_path, "cpu", 1)) as client:
        yield client


def assert_close(pixel: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    """Compares colours, with a tolerance for anti-aliasing."""
    np.testing.assert_allclose(pixel.astype(int), colour, atol=20)


async def test_responses_have_the_named_keypoints_of_each_object(client: Client) -> None:
    assert (await client.detect()).json()["detections"] == FOUND
    batch = await client.post("/detect/batch", files=[("a", PHOTO_PNG), ("b", PHOTO_PNG)])
    assert [result["detections"] for result in batch.json()["results"]] == [FOUND, FOUND]


async def test_keypoints_are_in_image_pixels_whatever_the_aspect_ratio(client: Client) -> None:
    tall = encode(paint(100, 400, ((255, 0, 0), (20, 100, 60, 300))))
    [found] = (await client.detect(tall)).json()["detections"]
    for joint, (x, y) in zip(found["keypoints"], [(20, 100), (60, 300)], strict=True):
        assert (joint["x"], joint["y"]) == pytest.approx((x, y), abs=7)  # an input pixel covers 6.25 image pixels


async def test_models_describe_their_skeleton(client: Client) -> None:
    [model] = (await client.get("/models")).json()["models"]
    assert model["skeleton"] == {"joints": ["upper_left", "lower_right"], "edges": [[0, 1]]}
    assert model["keypoint_ap"] == 7.5


async def test_tensors_include_the_keypoints(client: Client) -> None:
    description = (await client.get("/v2/models/colours")).json()
    assert {"name": "keypoints", "datatype": "FP32", "shape": [-1, -1, 2, 3]} in description["outputs"]
    image = {"name": "pixels", "shape": [1, *PHOTO.shape], "datatype": "UINT8", "data": PHOTO.ravel().tolist()}
    answer = (await client.post("/v2/models/colours/infer", json={"inputs": [image]})).json()
    [keypoints] = [output for output in answer["outputs"] if output["name"] == "keypoints"]
    assert keypoints["shape"] == [1, 2, 2, 3]
    expected = [[joint[key] for key in ("x", "y", "score")] for joint in RED_KEYPOINTS + GREEN_KEYPOINTS]
    np.testing.assert_allclose(np.reshape(keypoints["data"], (-1, 3)), expected, rtol=1e-6)


async def test_drawn_images_show_keypoints_and_the_lines_between_them(client: Client) -> None:
    response = await client.post("/detect", content=PHOTO_PNG, headers={"accept": "image/png"})
    picture = np.asarray(Image.open(io.BytesIO(response.content)))
    assert_close(picture[40, 64], choose_colour(0))  # the middle of the diagonal
    assert_close(picture[96, 144], choose_colour(1))
    assert tuple(picture[5, 5]) == GREY


def test_keypoints_with_low_scores_are_not_drawn() -> None:
    photo = np.full((100, 100, 3), GREY, np.uint8)
    joints = np.array([[[20, 50, 0.9], [80, 50, 0.1], [50, 80, 0.9]]], np.float32)
    found = Detections(np.array([[10, 10, 90, 90]], np.float32), np.array([0.9], np.float32), np.array([0]), joints)
    picture = draw_detections(photo, found, ["red"], Skeleton(("a", "b", "c"), ((0, 1), (0, 2))))
    assert tuple(picture[50, 80]) == GREY
    assert tuple(picture[50, 50]) == GREY  # nor the line to it
    assert_close(picture[50, 20], choose_colour(0))
    assert_close(picture[65, 35], choose_colour(0))


def test_command_writes_and_draws_keypoints(corners_path: Path, tmp_path: Path, capsys: Any) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(PHOTO_PNG)
    with pytest.raises(SystemExit) as end:
        main(
            ["detect", str(photo), "--model", str(corners_path), "--jsonl", "-", "--annotated", str(tmp_path / "drawn")]
        )
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["detections"] == FOUND
    drawn = np.asarray(Image.open(tmp_path / "drawn/photo.png"))
    assert_close(drawn[40, 64], choose_colour(0))


def test_model_whose_keypoints_contradict_its_metadata_is_refused(tmp_path: Path) -> None:
    three = describe(skeleton=Skeleton(("a", "b", "c"))).to_properties()
    with pytest.raises(InvalidModel, match="not 3 times the 3 keypoints that its metadata names"):
        Detector(save_model(tmp_path / "three.onnx", three, with_corners=True), "cpu")
    with pytest.raises(InvalidModel, match="its outputs are"):
        Detector(save_model(tmp_path / "none.onnx", describe(skeleton=CORNERS).to_properties()), "cpu")

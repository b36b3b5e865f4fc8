import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.detector import Detections
from model.draw import choose_colour, draw_boxes, draw_detections
from tests.app.client import Client, check_problem
from tests.app.colours import GREY, PHOTO, PHOTO_PNG, RED, encode, paint

pytestmark = pytest.mark.anyio


async def draw(client: Client, accept: str, data: bytes = PHOTO_PNG) -> NDArray[np.uint8]:
    response = await client.post("/detect", content=data, headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == accept
    assert response.headers["vary"] == "accept"
    picture = Image.open(io.BytesIO(response.content))
    assert picture.format == accept.split("/")[1].upper()
    return np.asarray(picture)


def find(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels, np.int64))


async def test_boxes_are_drawn_at_their_coordinates(client: Client) -> None:
    picture = await draw(client, "image/png")
    assert picture.shape == PHOTO.shape
    red, green = choose_colour(0), choose_colour(1)
    assert tuple(picture[40, 32]) == tuple(picture[40, 95]) == tuple(picture[63, 64]) == red
    assert tuple(picture[100, 112]) == tuple(picture[100, 175]) == tuple(picture[111, 140]) == green
    assert tuple(picture[40, 64]) == RED
    assert (picture[96:112, 16:48] == PHOTO[96:112, 16:48]).all()  # blue is below the threshold
    assert tuple(picture[5, 5]) == GREY


async def test_jpeg_is_upright_and_has_the_full_size(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(PHOTO).resize((1920, 1280)).transpose(Image.Transpose.ROTATE_90)
    photo = encode(stored, "JPEG", exif=exif)
    picture, lossless = await draw(client, "image/jpeg", photo), await draw(client, "image/png", photo)
    assert picture.shape == lossless.shape == (1280, 1920, 3)
    assert np.abs(picture.astype(int) - lossless).mean() < 0.5


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("application/json, image/png", "application/json"),
        ("text/html, application/*;q=0.5, image/png;q=0.4", "application/json"),
        ("image/*", "image/jpeg"),
        ("image/*, image/jpeg;q=0.1", "image/png"),
        ("image/avif,image/webp,image/*,*/*;q=0.8", "image/jpeg"),
        ("application/json;q=0, */*", "image/jpeg"),
        ("IMAGE/PNG", "image/png"),
    ],
)
async def test_best_accepted_type_is_sent(client: Client, accept: str, media_type: str) -> None:
    response = await client.post("/detect", content=PHOTO_PNG, headers={"accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "application/json;q=0", "image/png;q=high", "nonsense"])
async def test_unavailable_media_type_is_refused(client: Client, accept: str) -> None:
    response = await client.post("/detect", content=PHOTO_PNG, headers={"accept": accept})
    check_problem(response, 406, "not-acceptable", "application/json, image/jpeg, image/png")


async def test_image_too_wide_for_jpeg_can_be_drawn_as_png(client: Client) -> None:
    long = encode(Image.new("RGB", (65_501, 4)))
    refused = await client.post("/detect", content=long, headers={"accept": "image/jpeg"})
    assert refused.status_code == 413
    assert "65500 pixels: ask for a PNG" in refused.json()["detail"]
    assert (await draw(client, "image/png", long)).shape == (4, 65_501, 3)


async def test_refusals_are_problem_documents_whatever_is_accepted(client: Client) -> None:
    response = await client.post("/detect", content=b"hello", headers={"accept": "image/png"})
    check_problem(response, 415, "unknown-format")


def test_lines_and_text_scale_with_the_image() -> None:
    for scale, line in ((1, 2), (8, 16)):
        photo = paint(800 * scale, 450 * scale)
        across = draw_detections(photo, find(((100 * scale, 200 * scale, 700 * scale, 400 * scale), 0.9, 0)), ["red"])
        coloured = (across[300 * scale, : 400 * scale] == choose_colour(0)).all(axis=1)
        assert abs(coloured.sum() - line) <= 1
        tag = (across[: 200 * scale, 110 * scale] != GREY).any(axis=1)
        assert 20 * scale <= tag.sum() <= 32 * scale


@pytest.mark.parametrize("size", [(64, 48), (416, 312), (640, 480), (1280, 720)])
def test_box_is_visible_on_its_own_colour(size: tuple[int, int]) -> None:
    width, height = size
    photo = np.full((height, width, 3), choose_colour(0), np.uint8)
    box = (width // 4, height // 4, width // 2, height // 2)
    drawn = draw_boxes(photo, np.array([box], np.float32), [""], [choose_colour(0)])
    for edge in (drawn[height // 3, : width // 3], drawn[height // 3, width // 3 :]):
        assert (edge != choose_colour(0)).any(axis=1).sum() >= 2


def test_input_image_is_not_modified_and_no_detections_draw_nothing() -> None:
    photo = PHOTO.copy()
    draw_detections(photo, find(((0, 0, 50, 50), 0.9, 0)), ["red"])
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert (draw_detections(photo, nothing, ["red"]) == PHOTO).all()
    assert (photo == PHOTO).all()


def test_tags_do_not_overlap() -> None:
    photo = paint(640, 480)
    rows = [((100.0, 200.0, 400.0, 400.0), 0.9, 0), ((100.0, 200.0, 400.0, 400.0), 0.8, 1)]
    both = draw_detections(photo, find(*rows), ["red", "green"])
    tag = slice(180, 198), slice(100, 140)
    alone = draw_detections(photo, find(rows[0]), ["red", "green"])
    assert (both[tag] == alone[tag]).all()
    below = both[205:220, 105:150].reshape(-1, 3)
    assert (below == choose_colour(1)).all(axis=1).any()


def test_best_tag_is_on_top_where_no_place_is_free() -> None:
    photo = np.full((40, 200, 3), GREY, np.uint8)
    rows = [((60.0 + 4 * index, 0.0, 140.0, 40.0), 0.9 - index / 10, index) for index in range(5)]
    crowded = draw_detections(photo, find(*rows), ["object"] * 5)
    tag = slice(0, 8), slice(60, 100)
    assert (crowded[tag] == draw_detections(photo, find(rows[0]), ["object"])[tag]).all()


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 30, 20), (28, 18, 30, 20), (5, 5, 5, 5)])
def test_tag_larger_than_the_image_is_clipped(box: tuple[float, float, float, float]) -> None:
    assert draw_detections(paint(30, 20), find((box, 0.5, 0)), ["a long label, öß"]).shape == (20, 30, 3)


def test_classes_differ_in_colour() -> None:
    colours = np.array([choose_colour(index) for index in range(10)]).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(10)
    assert distances.min() > 60

from collections.abc import Sequence

import numpy as np
import pytest

from model.letterbox import fit, place
from model.shapes import Shape, list_shapes

SQUARE = [(320, 320)]


@pytest.mark.parametrize(
    ("photo", "expected"),
    [((640, 480), (0, 40, 320, 240)), ((300, 600), (80, 0, 160, 320)), ((100, 100), (0, 0, 320, 320))],
)
def test_a_photo_is_centred_and_keeps_its_proportions(
    photo: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    placed = place(*photo, SQUARE)
    assert (placed.left, placed.top, placed.width, placed.height) == expected


@pytest.mark.parametrize(
    ("photo", "shape"),
    [
        ((640, 480), (240, 320)),
        ((480, 640), (320, 240)),
        ((3000, 2000), (224, 320)),
        ((1080, 1920), (320, 192)),
        ((500, 500), (320, 320)),
        ((640, 500), (256, 320)),
        ((4000, 300), (192, 320)),
        ((640, 483), (256, 320)),
        ((20, 15), (240, 320)),
    ],
)
def test_a_photo_is_as_large_in_its_shape_as_in_the_square(photo: tuple[int, int], shape: tuple[int, int]) -> None:
    placed, in_square = place(*photo, list_shapes(320, 320, 16)), place(*photo, SQUARE)
    assert placed.shape == shape
    assert (placed.width, placed.height) == (in_square.width, in_square.height)
    assert abs(2 * placed.left + placed.width - shape[1]) <= 1
    assert abs(2 * placed.top + placed.height - shape[0]) <= 1


@pytest.mark.parametrize("shapes", [SQUARE, list_shapes(320, 320, 16)])
def test_boxes_survive_the_round_trip_to_input_pixels(shapes: Sequence[Shape]) -> None:
    placed = place(1000, 333, shapes)
    boxes = np.array([[0, 0, 1000, 333], [10.5, 20.25, 500, 300]], np.float32)
    np.testing.assert_allclose(placed.to_photo(placed.from_photo(boxes)), boxes, atol=1e-3)


def test_boxes_are_clipped_to_the_photo() -> None:
    placed = place(640, 480, SQUARE)
    assert placed.to_photo(np.array([[-5, 10, 330, 300]], np.float32)).tolist() == [[0, 0, 640, 480]]


def test_padding_overwrites_the_canvas_around_the_photo() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    fit(np.full((20, 40, 3), 255, np.uint8), place(40, 20, [(64, 64)]), canvas)
    assert (canvas[16:48] == 255).all()
    assert (canvas[:16] == 114).all() and (canvas[48:] == 114).all()  # as when the models were trained


def test_a_thin_photo_keeps_a_pixel() -> None:
    placed = place(5000, 3, SQUARE)
    assert (placed.width, placed.height) == (320, 1)


def test_a_photo_decoded_at_reduced_size_gives_the_same_canvas() -> None:
    placed = place(800, 400, [(64, 64)])
    full, half = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], 400, 0).repeat(3, 2)
    fit(ramp, placed, full)
    fit(ramp[::2, ::2], placed, half)
    assert np.abs(full.astype(int) - half).max() <= 4

import numpy as np
import pytest

from model.letterbox import PADDING, fit, place


@pytest.mark.parametrize(
    ("photo", "expected"),
    [((640, 480), (0, 40, 320, 240)), ((300, 600), (80, 0, 160, 320)), ((100, 100), (0, 0, 320, 320))],
)
def test_a_photo_is_centred_and_keeps_its_proportions(
    photo: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    placed = place(*photo, 320, 320)
    assert (placed.left, placed.top, placed.width, placed.height) == expected


def test_boxes_come_back_to_the_photo() -> None:
    placed = place(1000, 333, 320, 320)
    boxes = np.array([[0, 0, 1000, 333], [10.5, 20.25, 500, 300]], np.float32)
    np.testing.assert_allclose(placed.to_photo(placed.from_photo(boxes)), boxes, atol=1e-3)


def test_boxes_are_clipped_to_the_photo() -> None:
    placed = place(640, 480, 320, 320)
    assert placed.to_photo(np.array([[-5, 10, 330, 300]], np.float32)).tolist() == [[0, 0, 640, 480]]


def test_a_canvas_is_padded_around_the_photo_whatever_it_held_before() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    fit(np.full((20, 40, 3), 255, np.uint8), place(40, 20, 64, 64), canvas)
    assert (canvas[16:48] == 255).all()
    assert (canvas[:16] == PADDING).all() and (canvas[48:] == PADDING).all()


def test_a_thin_photo_keeps_a_pixel() -> None:
    placed = place(5000, 3, 320, 320)
    assert (placed.width, placed.height) == (320, 1)


def test_a_photo_decoded_smaller_lands_in_the_same_place() -> None:
    placed = place(800, 400, 64, 64)
    whole, half = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], 400, 0).repeat(3, 2)
    fit(ramp, placed, whole)
    fit(ramp[::2, ::2], placed, half)
    assert np.abs(whole.astype(int) - half).max() <= 4

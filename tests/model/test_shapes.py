import itertools

import pytest

from model.shapes import list_shapes


def test_shapes_are_camera_aspect_ratios_smallest_first() -> None:
    lower = [(192, 320), (224, 320), (240, 320), (256, 320)]
    assert list_shapes(320, 320, 16) == (
        *itertools.chain.from_iterable((shape, shape[::-1]) for shape in lower),
        (320, 320),
    )


@pytest.mark.parametrize(("size", "step"), [(64, 16), (320, 32), (512, 32), (512, 128), (416, 16), (1280, 32)])
def test_shapes_are_few_and_multiples_of_the_step_within_the_square(size: int, step: int) -> None:
    shapes = list_shapes(size, size, step)
    assert shapes[-1] == (size, size) and len(shapes) <= 9
    assert all(length % step == 0 and length <= size for length in itertools.chain(*shapes))
    assert all(max(shape) == size and min(shape) >= 9 / 16 * size for shape in shapes)


def test_graph_of_fixed_size_has_one_shape() -> None:
    assert list_shapes(64, 96, None) == ((64, 96),)

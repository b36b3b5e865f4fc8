"""Input shapes for photos of common aspect ratios, to compute less padding."""

import math

Shape = tuple[int, int]  # height and width, in pixels

# shorter to longer side: few, so that batches still fill. They are those of cameras; 4:5 is for photos slightly higher
# than 3:4, such as cropped ones
_ASPECTS = (1, 4 / 5, 3 / 4, 2 / 3, 9 / 16)


def list_shapes(height: int, width: int, step: int | None) -> tuple[Shape, ...]:
    """Returns input shapes in multiples of `step` pixels, up to `height` x `width`, by increasing area.

    Without a step the only shape is `height` x `width`.
    """
    if step is None:
        return ((height, width),)
    with_less_height = {(_round_up(height * aspect, step), width) for aspect in _ASPECTS}
    with_less_width = {(height, _round_up(width * aspect, step)) for aspect in _ASPECTS}
    return tuple(sorted(with_less_height | with_less_width, key=lambda shape: (math.prod(shape), shape)))


def _round_up(length: float, step: int) -> int:
    return math.ceil(length / step) * step

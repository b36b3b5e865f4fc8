"""The few shapes that a network is given photos in, so that little of its work is padding. Free of torch."""

import math

Shape = tuple[int, int]  # height and width, in pixels

# shorter side by longer: few, so that batches still form. They are those of cameras; 4:5 also takes what is a little
# higher than 3:4, as cropped photos are
_ASPECTS = (1, 4 / 5, 3 / 4, 2 / 3, 9 / 16)


def list_shapes(height: int, width: int, step: int | None) -> tuple[Shape, ...]:
    """Returns the shapes of multiples of `step` pixels for photos up to `height` x `width`, the smallest first.

    Without a step there is that one alone.
    """
    if step is None:
        return ((height, width),)
    lower = {(_round_up(height * aspect, step), width) for aspect in _ASPECTS}
    narrower = {(height, _round_up(width * aspect, step)) for aspect in _ASPECTS}
    return tuple(sorted(lower | narrower, key=lambda shape: (math.prod(shape), shape)))


def _round_up(length: float, step: int) -> int:
    return math.ceil(length / step) * step

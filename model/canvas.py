"""Image file or pixels → the network's input: the same for serving and for evaluation. Free of torch."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from model import image
from model.letterbox import Letterbox, fit, place


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A photo as the network takes it: `pixels` (input height, input width, 3), uint8, RGB."""

    pixels: NDArray[np.uint8]
    letterbox: Letterbox


def prepare(
    picture: bytes | NDArray[np.uint8], input_height: int, input_width: int, max_pixels: int = image.MAX_PIXELS
) -> Canvas:
    """Letterboxes RGB pixels (h, w, 3), or an image file, decoded no larger than it need be.

    Raises what `model.image` raises.
    """
    if isinstance(picture, bytes):
        header = image.read_header(picture, max_pixels)
        letterbox = place(header.width, header.height, input_width, input_height)
        photo = image.decode(picture, header, letterbox.width, letterbox.height)
    else:
        height, width, _ = picture.shape
        image.check_pixels(width, height, max_pixels)
        letterbox = place(width, height, input_width, input_height)
        photo = image.shrink(picture, letterbox.width, letterbox.height)
    pixels = np.empty((input_height, input_width, 3), np.uint8)
    fit(photo, letterbox, pixels)
    return Canvas(pixels, letterbox)

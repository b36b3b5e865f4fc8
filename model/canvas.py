"""Image file or pixels → the network's input, for serving and evaluation alike."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model import image
from model.letterbox import Letterbox, fit, place
from model.shapes import Shape

Canvases = Sequence[NDArray[np.uint8]]  # (H, W, 3) each, RGB


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A letterboxed photo: `pixels` (height, width, 3) of the letterbox's shape, uint8, RGB."""

    pixels: NDArray[np.uint8]
    letterbox: Letterbox


def prepare(picture: bytes | NDArray[np.uint8], shapes: Sequence[Shape], max_pixels: int = image.MAX_PIXELS) -> Canvas:
    """Letterboxes RGB pixels (h, w, 3) or an image file into the first of `shapes` that holds it at full scale.

    A file is decoded at a reduced size if that is large enough. Raises `InvalidImage`.
    """
    if isinstance(picture, bytes):
        header = image.read_header(picture, max_pixels)
        letterbox = place(header.width, header.height, shapes)
        photo = image.decode(picture, header, letterbox.width, letterbox.height)
    else:
        height, width, _ = picture.shape
        image.check_pixels(width, height, max_pixels)
        letterbox = place(width, height, shapes)
        photo = image.shrink(picture, letterbox.width, letterbox.height)
    pixels = np.empty((*letterbox.shape, 3), np.uint8)
    fit(photo, letterbox, pixels)
    return Canvas(pixels, letterbox)

"""Image file → the network's input: the same for serving and for evaluation. Free of torch."""

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


def prepare(data: bytes, input_height: int, input_width: int, max_pixels: int = image.MAX_PIXELS) -> Canvas:
    """Decodes one image file, no larger than it need be, and letterboxes it; raises what `model.image` raises."""
    header = image.read_header(data, max_pixels)
    letterbox = place(header.width, header.height, input_width, input_height)
    photo = image.decode(data, header, letterbox.width, letterbox.height)
    pixels = np.empty((input_height, input_width, 3), np.uint8)
    fit(photo, letterbox, pixels)
    return Canvas(pixels, letterbox)

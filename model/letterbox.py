"""Letterboxing: resizes and pads photos to an input shape, and maps boxes back."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.shapes import Shape

PADDING = 114  # grey: closer to a photo's mean than black, so that the padding's edge activates less


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """Position and size, in pixels, of a photo inside the network's input of `shape`, and the photo's own size."""

    photo_width: int
    photo_height: int
    left: int
    top: int
    width: int
    height: int
    shape: Shape

    def to_photo(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) in input pixels → boxes (N, 4) in the photo's pixels, clipped to it."""
        corners = self.points_to_photo(boxes_xyxy.reshape(-1, 2, 2))
        limits = np.array((self.photo_width, self.photo_height), np.float32)
        return np.minimum(np.maximum(corners, 0), limits).reshape(-1, 4)

    def points_to_photo(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (..., 2), x and y in input pixels → points in the photo's pixels, not clipped."""
        scale = (self.photo_width / self.width, self.photo_height / self.height)
        scaled: NDArray[np.float32] = ((points - (self.left, self.top)) * scale).astype(np.float32)
        return scaled

    def from_photo(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) in the photo's pixels → boxes (N, 4) in input pixels."""
        scale, shift = self.matrix[[0, 1], [0, 1]], self.matrix[:, 2]
        return (boxes_xyxy.reshape(-1, 2, 2) * scale + shift).reshape(-1, 4).astype(np.float32)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Affine matrix (2, 3) from the photo's pixels to input pixels."""
        scale_x, scale_y = self.width / self.photo_width, self.height / self.photo_height
        return np.array([[scale_x, 0, self.left], [0, scale_y, self.top]])


def place(photo_width: int, photo_height: int, shapes: Sequence[Shape]) -> Letterbox:
    """Scales a photo, keeping its aspect ratio, to fit the last of `shapes`, and centres it in the first that holds it.

    All sizes are in pixels.
    """
    max_height, max_width = shapes[-1]
    scale = min(max_width / photo_width, max_height / photo_height)
    width, height = max(1, round(photo_width * scale)), max(1, round(photo_height * scale))
    shape = next(each for each in shapes if each[0] >= height and each[1] >= width)
    return Letterbox(photo_width, photo_height, (shape[1] - width) // 2, (shape[0] - height) // 2, width, height, shape)


def fit(image: NDArray[np.uint8], letterbox: Letterbox, canvas: NDArray[np.uint8]) -> None:
    """Resizes `image` (h, w, 3) into `canvas` (input height, input width, 3) by `letterbox`, and pads around it.

    `image` may be smaller than the photo itself, as after a scaled JPEG decode.
    """
    bottom, right = letterbox.top + letterbox.height, letterbox.left + letterbox.width
    canvas[: letterbox.top] = canvas[bottom:] = PADDING
    canvas[letterbox.top : bottom, : letterbox.left] = canvas[letterbox.top : bottom, right:] = PADDING
    view: Any = canvas[letterbox.top : bottom, letterbox.left : right]
    cv2.resize(image, (letterbox.width, letterbox.height), dst=view, interpolation=cv2.INTER_LINEAR)

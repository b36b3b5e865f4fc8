"""Random views of a photo: scale, crop, flip and colour, in one warp and one colour matrix."""

import cv2
import numpy as np
from numpy.typing import NDArray

from model.letterbox import PADDING, place
from training.config import Config

_MIN_SIDE = 2.0  # pixels: less of an object than this cannot be told from noise
_MIN_VISIBLE = 0.2  # of a box's area: a crop that leaves less of an object leaves nothing to recognise
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma of RGB


def augment(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    labels: NDArray[np.int64],
    size: int,
    config: Config,
    random: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """One random view of `image` (h, w, 3), RGB, as a (size, size, 3) picture with the boxes (N, 4) that remain."""
    height, width = image.shape[:2]
    matrix = _random_warp(width, height, size, config, random)
    view = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(PADDING,) * 3
    )
    view = cv2.transform(view, _random_colors(config.color_jitter, random))
    boxes, kept = _warp_boxes(boxes_xyxy, matrix, size)
    return np.asarray(view, np.uint8), boxes, labels[kept]


def _random_warp(
    width: int, height: int, size: int, config: Config, random: np.random.Generator
) -> NDArray[np.float64]:
    """The 2x3 matrix photo → view: scaled around the letterbox's own scale, shifted anywhere, perhaps mirrored."""
    fitted = place(width, height, size, size)
    scale = np.exp(random.uniform(*np.log(config.scale_range)))
    stretch = np.exp(random.uniform(-config.aspect_jitter, config.aspect_jitter) / 2)
    scale_x = fitted.width / width * scale * stretch
    scale_y = fitted.height / height * scale / stretch
    # a view larger than the canvas is cropped anywhere, a smaller one lies anywhere on it
    left = random.uniform(*sorted((0.0, size - width * scale_x)))
    top = random.uniform(*sorted((0.0, size - height * scale_y)))
    if random.random() < config.flip:
        return np.array([[-scale_x, 0, left + width * scale_x], [0, scale_y, top]])
    return np.array([[scale_x, 0, left], [0, scale_y, top]])


def _warp_boxes(
    boxes_xyxy: NDArray[np.float32], matrix: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes (N, 4) after the warp, clipped, and which of them still show an object."""
    xs = boxes_xyxy[:, 0::2] * matrix[0, 0] + matrix[0, 2]
    ys = boxes_xyxy[:, 1::2] * matrix[1, 1] + matrix[1, 2]
    boxes = np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], axis=1)
    clipped = boxes.clip(0, size)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = (sides.min(1) >= _MIN_SIDE) & (visible >= _MIN_VISIBLE)
    return clipped[kept].astype(np.float32), kept


def _random_colors(jitter: float, random: np.random.Generator) -> NDArray[np.float64]:
    """A 3x4 matrix RGB → RGB: saturation, contrast, brightness and a tint of each channel."""
    saturation, contrast = 1 + random.uniform(-jitter, jitter, 2)
    brightness = random.uniform(-jitter, jitter) * 128
    tint = 1 + random.uniform(-jitter, jitter, 3) / 4
    matrix = saturation * np.eye(3) + (1 - saturation) * _GREY
    matrix = contrast * tint[:, None] * matrix
    return np.column_stack([matrix, np.full(3, (1 - contrast) * 128 + brightness)])

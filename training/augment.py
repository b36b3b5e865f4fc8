"""Random views of photos: scale, crop, flip and colour, in one warp and one colour matrix; four of them as a mosaic."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.letterbox import PADDING, place
from training.config import Config

_MIN_SIDE = 2.0  # pixels: less of an object than this cannot be told from noise
_MIN_VISIBLE = 0.2  # of a box's area: a crop that leaves less of an object leaves nothing to recognise
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma of RGB
_MOSAIC_SPLIT = (0.3, 0.7)  # of the picture's side: where the four tiles meet


class Example(NamedTuple):
    """A picture and the objects in it."""

    pixels: NDArray[np.uint8]  # (h, w, 3), RGB
    boxes_xyxy: NDArray[np.float32]  # (N, 4), pixels
    labels: NDArray[np.int64]  # (N,)
    is_ignored: NDArray[np.bool_]  # (N,), what is neither an object to learn nor none
    keypoints: NDArray[np.float32]  # (N, J, 3), x and y in pixels and a visibility
    mirrored: tuple[int, ...] = ()  # (J,), the joint that takes each one's place in a mirrored picture


def random_view(example: Example, size: int, config: Config, random: np.random.Generator) -> Example:
    """One random view of `example`, as a (size, size, 3) picture with the boxes that remain."""
    return _view(example, size, (size, size), config.scale_range, config, random)


def random_mosaic(examples: Sequence[Example], size: int, config: Config, random: np.random.Generator) -> Example:
    """Random views of four examples, side by side in one (size, size, 3) picture (YOLOv4, arXiv 2004.10934, 3.3).

    No cell is spent on padding, and objects are met small and in many surroundings.
    """
    split_x, split_y = (round(share * size) for share in random.uniform(*_MOSAIC_SPLIT, 2))
    pixels = np.empty((size, size, 3), np.uint8)
    tiles = []
    corners = [
        (0, 0, split_x, split_y),
        (split_x, 0, size, split_y),
        (0, split_y, split_x, size),
        (split_x, split_y, size, size),
    ]
    for example, (x0, y0, x1, y1) in zip(examples, corners, strict=True):
        tile = _view(example, size, (x1 - x0, y1 - y0), config.mosaic_scale_range, config, random)
        pixels[y0:y1, x0:x1] = tile.pixels
        corner = np.array([x0, y0, x0, y0], np.float32)
        keypoints = tile.keypoints + np.array([x0, y0, 0], np.float32)
        tiles.append(tile._replace(boxes_xyxy=tile.boxes_xyxy + corner, keypoints=keypoints))
    return Example(
        pixels,
        np.concatenate([tile.boxes_xyxy for tile in tiles]),
        np.concatenate([tile.labels for tile in tiles]),
        np.concatenate([tile.is_ignored for tile in tiles]),
        np.concatenate([tile.keypoints for tile in tiles]),
        examples[0].mirrored,
    )


def _view(
    example: Example,
    fit: int,
    canvas: tuple[int, int],
    scale_range: tuple[float, float],
    config: Config,
    random: np.random.Generator,
) -> Example:
    """A view of (width, height) `canvas`, scaled by `scale_range` around the scale that fits the photo into `fit`²."""
    matrix = _random_warp(example.pixels, fit, canvas, scale_range, config, random)
    pixels = cv2.warpAffine(
        example.pixels,
        matrix,
        canvas,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PADDING,) * 3,
    )
    pixels = cv2.transform(pixels, _random_colors(config.color_jitter, random))
    boxes, kept = _warp_boxes(example.boxes_xyxy, matrix, canvas)
    keypoints = _warp_keypoints(example.keypoints[kept], matrix, canvas, example.mirrored)
    objects = (boxes, example.labels[kept], example.is_ignored[kept], keypoints)
    return Example(np.asarray(pixels, np.uint8), *objects, example.mirrored)


def _random_warp(
    photo: NDArray[np.uint8],
    fit: int,
    canvas: tuple[int, int],
    scale_range: tuple[float, float],
    config: Config,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """The 2x3 matrix photo → view: scaled around the letterbox's own scale, shifted anywhere, perhaps mirrored."""
    height, width = photo.shape[:2]
    fitted = place(width, height, [(fit, fit)])
    scale = np.exp(random.uniform(*np.log(scale_range)))
    stretch = np.exp(random.uniform(-config.aspect_jitter, config.aspect_jitter) / 2)
    scale_x = fitted.width / width * scale * stretch
    scale_y = fitted.height / height * scale / stretch
    # a view larger than the canvas is cropped anywhere, a smaller one lies anywhere on it
    left = random.uniform(*sorted((0.0, canvas[0] - width * scale_x)))
    top = random.uniform(*sorted((0.0, canvas[1] - height * scale_y)))
    if random.random() < config.flip:
        return np.array([[-scale_x, 0, left + width * scale_x], [0, scale_y, top]])
    return np.array([[scale_x, 0, left], [0, scale_y, top]])


def _warp_boxes(
    boxes_xyxy: NDArray[np.float32], matrix: NDArray[np.float64], canvas: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes (N, 4) after the warp, clipped, and which of them still show an object."""
    xs = boxes_xyxy[:, 0::2] * matrix[0, 0] + matrix[0, 2]
    ys = boxes_xyxy[:, 1::2] * matrix[1, 1] + matrix[1, 2]
    boxes = np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], axis=1)
    clipped = boxes.clip(0, (*canvas, *canvas))
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = (sides.min(1) >= _MIN_SIDE) & (visible >= _MIN_VISIBLE)
    return clipped[kept].astype(np.float32), kept


def _warp_keypoints(
    keypoints: NDArray[np.float32], matrix: NDArray[np.float64], canvas: tuple[int, int], mirrored: tuple[int, ...]
) -> NDArray[np.float32]:
    """Joints (N, J, 3) after the warp; those that the crop leaves out have no place any more."""
    if matrix[0, 0] < 0 and keypoints.size:
        keypoints = keypoints[:, list(mirrored)]
    x = keypoints[..., 0] * matrix[0, 0] + matrix[0, 2]
    y = keypoints[..., 1] * matrix[1, 1] + matrix[1, 2]
    is_out = (x < 0) | (y < 0) | (x >= canvas[0]) | (y >= canvas[1])
    visibility = np.where(is_out, np.minimum(keypoints[..., 2], 0), keypoints[..., 2])  # what is unknown stays so
    return np.stack([x, y, visibility], axis=-1).astype(np.float32)


def _random_colors(jitter: float, random: np.random.Generator) -> NDArray[np.float64]:
    """A 3x4 matrix RGB → RGB: saturation, contrast, brightness and a tint of each channel."""
    saturation, contrast = 1 + random.uniform(-jitter, jitter, 2)
    brightness = random.uniform(-jitter, jitter) * 128
    tint = 1 + random.uniform(-jitter, jitter, 3) / 4
    matrix = saturation * np.eye(3) + (1 - saturation) * _GREY
    matrix = contrast * tint[:, None] * matrix
    return np.column_stack([matrix, np.full(3, (1 - contrast) * 128 + brightness)])

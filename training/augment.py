"""Augmentation: scale, crop and flip in one warp, colour jitter in one matrix, mosaic and copy-paste."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.canvas import Canvas
from model.letterbox import PADDING, place
from training.config import Config
from training.datasets.dataset import ABSENT, HIDDEN, Objects
from training.evaluation.overlap import box_coverage

_MIN_SIDE = 2.0  # pixels; boxes smaller than this are indistinguishable from noise and dropped
_MIN_VISIBLE = 0.2  # share of a box's area that a crop must keep; less leaves nothing to recognise
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma of RGB
# PCA of ImageNet's pixels, RGB in 0..255: principal axes as columns, and the variance along each (AlexNet, 4.1)
_COLOUR_AXES = np.array(
    [[-0.5609, 0.7183, 0.4116], [-0.5833, 0.0099, -0.8122], [-0.5875, -0.6956, 0.4134]],
)
_COLOUR_VARIANCES = 255 * np.array([0.2142, 0.0182, 0.0034])
_MOSAIC_SPLIT = (0.3, 0.7)  # range of the point where the four tiles meet, as a share of the image side
_PASTE_MARGIN = 0.1  # of a box's sides; the blending border around a pasted object


class Example(NamedTuple):
    """An image and its objects."""

    pixels: NDArray[np.uint8]  # (h, w, 3), RGB
    objects: Objects  # in pixel coordinates of `pixels`
    mirrored: tuple[int, ...] = ()  # (J,), index of each joint's left-right counterpart


def random_view(example: Example, size: int, config: Config, random: np.random.Generator) -> Example:
    """Returns one random view of `example`: a (size, size, 3) image and the objects still visible in it."""
    return _view(example, size, (size, size), config.scale_range, config, random)


def letterboxed_view(canvas: Canvas, objects: Objects, mirrored: tuple[int, ...]) -> Example:
    """Returns a letterboxed photo without augmentation, mapping `objects` from photo to canvas pixels."""
    view = Example(canvas.pixels, objects, mirrored)
    height, width = canvas.letterbox.shape
    return view._replace(objects=_clip(_warp(view, canvas.letterbox.matrix), np.array([0, 0, width, height])))


def random_mosaic(examples: Sequence[Example], size: int, config: Config, random: np.random.Generator) -> Example:
    """Tiles random views of four examples into one (size, size, 3) image (YOLOv4, arXiv 2004.10934, 3.3).

    Less of the image is padding, and objects appear smaller and in more contexts.
    """
    split_x, split_y = (round(share * size) for share in random.uniform(*_MOSAIC_SPLIT, 2))
    pixels = np.empty((size, size, 3), np.uint8)
    tiles = []
    tile_boxes = [
        (0, 0, split_x, split_y),
        (split_x, 0, size, split_y),
        (0, split_y, split_x, size),
        (split_x, split_y, size, size),
    ]
    for example, (x0, y0, x1, y1) in zip(examples, tile_boxes, strict=True):
        tile = _view(example, size, (x1 - x0, y1 - y0), config.mosaic_scale_range, config, random)
        pixels[y0:y1, x0:x1] = tile.pixels
        boxes = tile.objects.boxes_xyxy + np.array([x0, y0, x0, y0], np.float32)
        keypoints = tile.objects.keypoints + np.array([x0, y0, 0], np.float32)
        tiles.append(tile.objects._replace(boxes_xyxy=boxes, keypoints=keypoints))
    return Example(pixels, Objects.concatenate(tiles), examples[0].mirrored)


def paste_object(view: Example, donor: Example, label: int, random: np.random.Generator) -> Example:
    """Pastes one object of `label` from `donor`, a view of the same size, into `view` at the same position.

    Other objects of `donor` are copied as far as they lie in the pasted box; objects of `view` that it covers are
    dropped. Returns `view` itself if `donor` has no such object. Rare classes thus appear in many contexts (copy-paste,
    arXiv 2012.07177); without masks, whole boxes are pasted, with blended edges (arXiv 1708.01642).
    """
    candidates = np.flatnonzero((donor.objects.labels == label) & ~donor.objects.is_ignored)
    if not candidates.size:
        return view
    box = donor.objects.boxes_xyxy[random.choice(candidates)]
    height, width = view.pixels.shape[:2]
    margin = (box[2:] - box[:2]) * _PASTE_MARGIN
    padded_box = np.concatenate([box[:2] - margin, box[2:] + margin]).round()
    region = padded_box.clip(0, (width, height, width, height))
    x0, y0, x1, y1 = region.astype(int)
    xs, ys = np.arange(x0, x1), np.arange(y0, y1)
    fade_x = np.minimum(xs + 1 - padded_box[0], padded_box[2] - xs) / (margin[0] + 1)
    fade_y = np.minimum(ys + 1 - padded_box[1], padded_box[3] - ys) / (margin[1] + 1)
    alpha = (fade_y.clip(0, 1)[:, None] * fade_x.clip(0, 1))[..., None]
    pixels = view.pixels.copy()
    pixels[y0:y1, x0:x1] = alpha * donor.pixels[y0:y1, x0:x1] + (1 - alpha) * pixels[y0:y1, x0:x1]

    remaining = view.objects.select(1 - box_coverage(view.objects.boxes_xyxy, region[None])[:, 0] >= _MIN_VISIBLE)
    is_hidden = _are_inside(remaining.keypoints, region)
    remaining.keypoints[is_hidden, 2] = np.minimum(remaining.keypoints[is_hidden, 2], HIDDEN)
    pasted = _clip(donor.objects, region)
    return Example(pixels, Objects.concatenate([remaining, pasted]), view.mirrored)


def _clip(objects: Objects, region: NDArray[Any]) -> Objects:
    """Clips objects to `region` (4,), xyxy, drops those barely visible in it, and marks joints outside it as `ABSENT`.

    Ignored objects are kept however little is visible, since they must not become background.
    """
    boxes = objects.boxes_xyxy.clip(region[[0, 1, 0, 1]], region[[2, 3, 2, 3]])
    sides = boxes[:, 2:] - boxes[:, :2]
    visible = sides.prod(1) / (objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]).prod(1)
    kept = (sides.min(1) >= _MIN_SIDE) & (visible >= _MIN_VISIBLE) | objects.is_ignored & (sides.min(1) > 0)
    visibility = objects.keypoints[..., 2]
    outside = np.minimum(visibility, ABSENT)  # `UNKNOWN` stays unknown
    visibility = np.where(_are_inside(objects.keypoints, region), visibility, outside)
    keypoints = np.concatenate([objects.keypoints[..., :2], visibility[..., None]], axis=-1)
    clipped = objects._replace(boxes_xyxy=boxes.astype(np.float32), keypoints=keypoints.astype(np.float32))
    return clipped.select(kept)


def _are_inside(keypoints: NDArray[Any], region: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which joints (N, J, 3) lie in `region` (4,), xyxy: (N, J)."""
    x, y = keypoints[..., 0], keypoints[..., 1]
    inside: NDArray[np.bool_] = (x >= region[0]) & (x < region[2]) & (y >= region[1]) & (y < region[3])
    return inside


def _view(
    example: Example,
    fit_size: int,
    canvas: tuple[int, int],
    scale_range: tuple[float, float],
    config: Config,
    random: np.random.Generator,
) -> Example:
    """Returns a random view of size `canvas` (width, height), scaled relative to a letterbox of side `fit_size`."""
    matrix = _random_warp(example.pixels, fit_size, canvas, scale_range, config, random)
    pixel_matrix = matrix.copy()  # OpenCV puts the origin at the first pixel's centre, boxes at its corner
    pixel_matrix[:, 2] += (matrix[:, :2].sum(1) - 1) / 2
    pixels = cv2.warpAffine(
        example.pixels,
        pixel_matrix,
        canvas,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PADDING,) * 3,
    )
    pixels = cv2.transform(pixels, _random_colors(config, random))
    objects = _clip(_warp(example, matrix), np.array([0, 0, *canvas]))
    return Example(np.asarray(pixels, np.uint8), objects, example.mirrored)


def _random_warp(
    photo: NDArray[np.uint8],
    fit_size: int,
    canvas: tuple[int, int],
    scale_range: tuple[float, float],
    config: Config,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Draws the 2x3 matrix photo → view: a scale relative to the letterbox's, a shift and perhaps a flip."""
    height, width = photo.shape[:2]
    fitted = place(width, height, [(fit_size, fit_size)])
    scale = np.exp(random.uniform(*np.log(scale_range)))
    stretch = np.exp(random.uniform(-config.aspect_jitter, config.aspect_jitter) / 2)
    scale_x = fitted.width / width * scale * stretch
    scale_y = fitted.height / height * scale / stretch
    # an image larger than the canvas is cropped at random, a smaller one placed at random
    left = random.uniform(*sorted((0.0, canvas[0] - width * scale_x)))
    top = random.uniform(*sorted((0.0, canvas[1] - height * scale_y)))
    if random.random() < config.flip:
        return np.array([[-scale_x, 0, left + width * scale_x], [0, scale_y, top]])
    return np.array([[scale_x, 0, left], [0, scale_y, top]])


def _warp(example: Example, matrix: NDArray[np.float64]) -> Objects:
    """Warps the objects by a 2x3 matrix, without clipping; coordinates become float64."""
    objects, keypoints = example.objects, example.objects.keypoints
    scale, shift = matrix[[0, 1], [0, 1]], matrix[:, 2]
    corners = objects.boxes_xyxy.reshape(-1, 2, 2) * scale + shift
    boxes = np.hstack([corners.min(1), corners.max(1)])
    if scale[0] < 0 and keypoints.size:
        keypoints = keypoints[:, list(example.mirrored)]
    points = keypoints[..., :2] * scale + shift
    return objects._replace(boxes_xyxy=boxes, keypoints=np.concatenate([points, keypoints[..., 2:]], axis=-1))


def _random_colors(config: Config, random: np.random.Generator) -> NDArray[np.float64]:
    """Draws a 3x4 matrix RGB → RGB: saturation, contrast, brightness, channel tints and AlexNet's PCA lighting."""
    jitter = config.color_jitter
    saturation, contrast = 1 + random.uniform(-jitter, jitter, 2)
    brightness = random.uniform(-jitter, jitter) * 128
    tint = 1 + random.uniform(-jitter, jitter, 3) / 4
    matrix = saturation * np.eye(3) + (1 - saturation) * _GREY
    matrix = contrast * tint[:, None] * matrix
    shift = np.full(3, (1 - contrast) * 128 + brightness)
    if config.lighting:
        shift += _COLOUR_AXES @ (_COLOUR_VARIANCES * random.normal(0, config.lighting, 3))
    return np.column_stack([matrix, shift])

"""Random views of photos: scale, crop, flip and colour, in one warp and one colour matrix.

Four of them make a mosaic, and an object of one may be pasted onto another.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.canvas import Canvas
from model.letterbox import PADDING, place
from training.config import Config
from training.datasets.dataset import ABSENT, HIDDEN, Objects
from training.overlap import box_coverage

_MIN_SIDE = 2.0  # pixels: less of an object than this cannot be told from noise
_MIN_VISIBLE = 0.2  # of a box's area: a crop that leaves less of an object leaves nothing to recognise
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma of RGB
# of ImageNet's pixels, RGB in 0..255: the main axes as columns, and the variance along each (AlexNet, 4.1)
_COLOUR_AXES = np.array(
    [[-0.5609, 0.7183, 0.4116], [-0.5833, 0.0099, -0.8122], [-0.5875, -0.6956, 0.4134]],
)
_COLOUR_VARIANCES = 255 * np.array([0.2142, 0.0182, 0.0034])
_MOSAIC_SPLIT = (0.3, 0.7)  # of the picture's side: where the four tiles meet
_PASTED_MARGIN = 0.1  # of a box's sides: the surroundings that come with an object, in which it fades


class Example(NamedTuple):
    """A picture and the objects in it."""

    pixels: NDArray[np.uint8]  # (h, w, 3), RGB
    objects: Objects  # in these pixels
    mirrored: tuple[int, ...] = ()  # (J,), the joint that takes each one's place in a mirrored picture


def random_view(example: Example, size: int, config: Config, random: np.random.Generator) -> Example:
    """One random view of `example`, as a (size, size, 3) picture with the boxes that remain."""
    return _view(example, size, (size, size), config.scale_range, config, random)


def plain_view(canvas: Canvas, objects: Objects, mirrored: tuple[int, ...]) -> Example:
    """A photo as it is evaluated, with its `objects` moved from the photo's pixels to the canvas's."""
    view = Example(canvas.pixels, objects, mirrored)
    height, width = canvas.letterbox.shape
    return view._replace(objects=_clip(_warp(view, canvas.letterbox.matrix), np.array([0, 0, width, height])))


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
        boxes = tile.objects.boxes_xyxy + np.array([x0, y0, x0, y0], np.float32)
        keypoints = tile.objects.keypoints + np.array([x0, y0, 0], np.float32)
        tiles.append(tile.objects._replace(boxes_xyxy=boxes, keypoints=keypoints))
    return Example(pixels, Objects.concatenate(tiles), examples[0].mirrored)


def paste(view: Example, donor: Example, label: int, random: np.random.Generator) -> Example:
    """`view` with one object of `label` out of `donor`, a view of the same size, at its place there.

    Other objects of `donor` come along as far as they are in the same box; those of `view` that the paste hides are
    dropped. Without such an object, `view` itself. Rare classes so meet many surroundings (copy-paste, arXiv
    2012.07177; by boxes with soft edges, for want of masks: arXiv 1708.01642).
    """
    candidates = np.flatnonzero((donor.objects.labels == label) & ~donor.objects.is_ignored)
    if not candidates.size:
        return view
    box = donor.objects.boxes_xyxy[random.choice(candidates)]
    height, width = view.pixels.shape[:2]
    margin = (box[2:] - box[:2]) * _PASTED_MARGIN
    whole = np.concatenate([box[:2] - margin, box[2:] + margin]).round()
    region = whole.clip(0, (width, height, width, height))
    x0, y0, x1, y1 = region.astype(int)
    xs, ys = np.arange(x0, x1), np.arange(y0, y1)
    fade_x = np.minimum(xs + 1 - whole[0], whole[2] - xs) / (margin[0] + 1)
    fade_y = np.minimum(ys + 1 - whole[1], whole[3] - ys) / (margin[1] + 1)
    alpha = (fade_y.clip(0, 1)[:, None] * fade_x.clip(0, 1))[..., None]
    pixels = view.pixels.copy()
    pixels[y0:y1, x0:x1] = alpha * donor.pixels[y0:y1, x0:x1] + (1 - alpha) * pixels[y0:y1, x0:x1]

    under = view.objects.select(1 - box_coverage(view.objects.boxes_xyxy, region[None])[:, 0] >= _MIN_VISIBLE)
    is_hidden = _are_inside(under.keypoints, region)
    under.keypoints[is_hidden, 2] = np.minimum(under.keypoints[is_hidden, 2], HIDDEN)
    over = _clip(donor.objects, region)
    return Example(pixels, Objects.concatenate([under, over]), view.mirrored)


def _clip(objects: Objects, region: NDArray[Any]) -> Objects:
    """Those that still show something in `region` (4,), xyxy; their joints outside it have no place any more.

    Of what is ignored any part shows something, since it is no background.
    """
    boxes = objects.boxes_xyxy.clip(region[[0, 1, 0, 1]], region[[2, 3, 2, 3]])
    sides = boxes[:, 2:] - boxes[:, :2]
    visible = sides.prod(1) / (objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]).prod(1)
    kept = (sides.min(1) >= _MIN_SIDE) & (visible >= _MIN_VISIBLE) | objects.is_ignored & (sides.min(1) > 0)
    visibility = objects.keypoints[..., 2]
    cut = np.minimum(visibility, ABSENT)  # what is unknown stays so
    seen = np.where(_are_inside(objects.keypoints, region), visibility, cut)
    keypoints = np.concatenate([objects.keypoints[..., :2], seen[..., None]], axis=-1)
    left = objects._replace(boxes_xyxy=boxes.astype(np.float32), keypoints=keypoints.astype(np.float32))
    return left.select(kept)


def _are_inside(keypoints: NDArray[Any], region: NDArray[Any]) -> NDArray[np.bool_]:
    """Which joints (N, J, 3) lie in `region` (4,): (N, J)."""
    x, y = keypoints[..., 0], keypoints[..., 1]
    inside: NDArray[np.bool_] = (x >= region[0]) & (x < region[2]) & (y >= region[1]) & (y < region[3])
    return inside


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
    of_middles = matrix.copy()  # OpenCV counts from the middle of the first pixel, boxes from its edge
    of_middles[:, 2] += (matrix[:, :2].sum(1) - 1) / 2
    pixels = cv2.warpAffine(
        example.pixels,
        of_middles,
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


def _warp(example: Example, matrix: NDArray[np.float64]) -> Objects:
    """The objects after the warp by a 2x3 matrix, as far as they reach; coordinates are in double precision."""
    objects, keypoints = example.objects, example.objects.keypoints
    scale, shift = matrix[[0, 1], [0, 1]], matrix[:, 2]
    corners = objects.boxes_xyxy.reshape(-1, 2, 2) * scale + shift
    boxes = np.hstack([corners.min(1), corners.max(1)])
    if scale[0] < 0 and keypoints.size:
        keypoints = keypoints[:, list(example.mirrored)]
    places = keypoints[..., :2] * scale + shift
    return objects._replace(boxes_xyxy=boxes, keypoints=np.concatenate([places, keypoints[..., 2:]], axis=-1))


def _random_colors(config: Config, random: np.random.Generator) -> NDArray[np.float64]:
    """A 3x4 matrix RGB → RGB: saturation, contrast, brightness and a tint of each channel, and AlexNet's lighting."""
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

"""What may be done at test time for a better figure: mirrored pictures, several scales, soft-NMS."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from model.cells import DenseMap
from model.detector import Detections
from model.heads import HeadMaps, KeypointMaps

_SUBPIXELS = 64  # OpenCV's soft-NMS takes whole numbers
_LEAST_SCORE = 0.001


@dataclasses.dataclass(frozen=True)
class TestTime:
    """What may be done for a better figure at many times the cost; the paper's "flip" and "multi-scale" (section 6)."""

    __test__ = False  # for pytest, which takes it for a test

    flip: bool = False  # the mean with the mirrored picture, of heatmap and size
    scales: tuple[float, ...] = (1.0,)  # of the input's size; what several find is merged by soft-NMS
    soft_nms: bool = False  # even for one scale


AS_SERVED = TestTime()


def average_mirrored(network: nn.Module, images: Tensor, mirrored: Sequence[int]) -> HeadMaps:
    """The head maps of images (B, H, W, 3), with heatmap, size and joints the mean with those of their mirror images.

    `mirrored` (J,) are the joints that take each one's place there. Offsets are those of the images as they are.
    """
    one, other = network(images), network(images.flip(2))
    heatmap = _average_logits(one.heatmap, other.heatmap.flip(3))
    size = DenseMap((one.size.dense() + other.size.dense().flip(3)) / 2)
    keypoints = None
    if one.keypoints is not None:
        order = list(mirrored)
        there = other.keypoints.places.dense().flip(3).unflatten(1, (-1, 2))[:, order]
        # a joint as far left of its cell's right edge as it is right of the left one here
        there = torch.stack([1 - there[:, :, 0], there[:, :, 1]], dim=2).flatten(1, 2)
        keypoints = KeypointMaps(
            DenseMap((one.keypoints.places.dense() + there) / 2),
            _average_logits(one.keypoints.heatmap, other.keypoints.heatmap.flip(3)[:, order]),
            one.keypoints.offset,
        )
    return HeadMaps(heatmap, size, one.offset, keypoints)


def _average_logits(one: Tensor, other: Tensor) -> Tensor:
    return torch.logit((one.sigmoid() + other.sigmoid()) / 2, eps=1e-6)


def soft_nms(several: Sequence[Detections]) -> Detections:
    """Merges what was found in one photo: of boxes of one class, each lowers the scores of those that it overlaps.

    Source: arXiv 1704.04503, Gaussian with sigma 0.5.
    """
    every = _concatenate(several)
    merged = []
    for label in np.unique(every.labels):
        rows = np.flatnonzero(every.labels == label)
        corners = (every.boxes_xyxy[rows] * _SUBPIXELS).round().astype(int)
        rectangles = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
        scores = every.scores[rows].tolist()
        lowered, kept = cv2.dnn.softNMSBoxes(rectangles, scores, _LEAST_SCORE, _LEAST_SCORE, 0, 0.5)
        chosen = every.select(rows[np.asarray(kept, np.int64).reshape(-1)])
        merged.append(dataclasses.replace(chosen, scores=np.asarray(lowered, np.float32).reshape(-1)))
    whole = _concatenate(merged)
    best = whole.scores.argsort()[::-1][: max(len(found.scores) for found in several)]
    return whole.select(best)


def _concatenate(several: Sequence[Detections]) -> Detections:
    keypoints = [found.keypoints for found in several if found.keypoints is not None]
    return Detections(
        np.concatenate([found.boxes_xyxy for found in several]),
        np.concatenate([found.scores for found in several]),
        np.concatenate([found.labels for found in several]),
        np.concatenate(keypoints) if keypoints else None,
    )

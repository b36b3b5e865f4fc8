"""Test-time augmentation: flip, multi-scale and soft-NMS."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from model.detector import Detections
from model.network.cells import DenseMap
from model.network.heads import HeadMaps, KeypointMaps

_SUBPIXELS = 64  # per pixel: OpenCV's soft-NMS takes integers
_MIN_SCORE = 0.001


@dataclasses.dataclass(frozen=True)
class TestTimeAugmentation:
    """Options that raise AP at a multiple of the cost; the paper's "flip" and "multi-scale" (section 6)."""

    __test__ = False  # keeps pytest from collecting it

    flip: bool = False  # averages heatmap, size and keypoints with those of the mirrored image
    scales: tuple[float, ...] = (1.0,)  # of the input size; detections of several scales are merged by soft-NMS
    soft_nms: bool = False  # for a single scale too


NO_AUGMENTATION = TestTimeAugmentation()


def forward_with_flip(network: nn.Module, images: Tensor, mirrored: Sequence[int]) -> HeadMaps:
    """Returns the head maps of images (B, H, W, 3), averaged with those of the mirrored images.

    Heatmap, size and keypoints are averaged; offsets are those of the original images. `mirrored` (J,) is the index of
    each keypoint's left-right counterpart.
    """
    plain, flipped = network(images), network(images.flip(2))
    heatmap = _average_logits(plain.heatmap, flipped.heatmap.flip(3))
    size = DenseMap((plain.size.dense() + flipped.size.dense().flip(3)) / 2)
    keypoints = None
    if plain.keypoints is not None:
        order = list(mirrored)
        places = flipped.keypoints.places.dense().flip(3).unflatten(1, (-1, 2))[:, order]
        # x is measured from the left edge of the cell, which is its right edge in the mirrored image
        places = torch.stack([1 - places[:, :, 0], places[:, :, 1]], dim=2).flatten(1, 2)
        keypoints = KeypointMaps(
            DenseMap((plain.keypoints.places.dense() + places) / 2),
            _average_logits(plain.keypoints.heatmap, flipped.keypoints.heatmap.flip(3)[:, order]),
            plain.keypoints.offset,
        )
    return HeadMaps(heatmap, size, plain.offset, keypoints)


def _average_logits(plain: Tensor, flipped: Tensor) -> Tensor:
    return torch.logit((plain.sigmoid() + flipped.sigmoid()) / 2, eps=1e-6)


def soft_nms(several: Sequence[Detections]) -> Detections:
    """Merges several sets of detections of one photo by soft-NMS, for each class separately.

    Keeps as many detections as the largest set has. Source: arXiv 1704.04503, Gaussian with sigma 0.5.
    """
    together = _concatenate(several)
    merged = [together.select(slice(0))]
    for label in np.unique(together.labels):
        rows = np.flatnonzero(together.labels == label)
        corners = (together.boxes_xyxy[rows] * _SUBPIXELS).round().astype(int)
        rectangles = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
        scores = together.scores[rows].tolist()
        lowered, kept = cv2.dnn.softNMSBoxes(rectangles, scores, _MIN_SCORE, _MIN_SCORE, 0, 0.5)
        chosen = together.select(rows[np.asarray(kept, np.int64).reshape(-1)])
        merged.append(dataclasses.replace(chosen, scores=np.asarray(lowered, np.float32).reshape(-1)))
    kept_detections = _concatenate(merged)
    best = kept_detections.scores.argsort()[::-1][: max(len(found.scores) for found in several)]
    return kept_detections.select(best)


def _concatenate(several: Sequence[Detections]) -> Detections:
    keypoints = [found.keypoints for found in several if found.keypoints is not None]
    return Detections(
        np.concatenate([found.boxes_xyxy for found in several]),
        np.concatenate([found.scores for found in several]),
        np.concatenate([found.labels for found in several]),
        np.concatenate(keypoints) if keypoints else None,
    )

"""Test-time augmentation: flip, multi-scale and soft-NMS."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from model.detector import Detections
from model.network.cells import DenseMap
from model.network.heads import HeadMaps, KeypointMaps
from training.evaluation.overlap import box_iou

_SIGMA = 0.5  # of soft-NMS
_MIN_SCORE = 0.001  # lower scores are dropped


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
    scores = together.scores.copy()
    overlaps = box_iou(together.boxes_xyxy, together.boxes_xyxy)
    overlaps[together.labels[:, None] != together.labels] = 0
    remaining = np.ones(len(scores), np.bool_)
    for _ in scores:
        best = np.where(remaining, scores, -1).argmax()
        remaining[best] = False
        scores[remaining] *= np.exp(-(overlaps[best, remaining] ** 2) / _SIGMA)
    kept = (-scores).argsort(kind="stable")[: max(len(found.scores) for found in several)]
    return dataclasses.replace(together, scores=scores).select(kept[scores[kept] >= _MIN_SCORE])


def _concatenate(several: Sequence[Detections]) -> Detections:
    keypoints = [found.keypoints for found in several if found.keypoints is not None]
    return Detections(
        np.concatenate([found.boxes_xyxy for found in several]),
        np.concatenate([found.scores for found in several]),
        np.concatenate([found.labels for found in several]),
        np.concatenate(keypoints) if keypoints else None,
    )

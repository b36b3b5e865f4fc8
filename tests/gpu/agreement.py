"""How far two detectors find the same."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections, Detector

_LEAST_SCORE = 0.1  # below it, the order of what is hardly seen is chance
_LEAST_IOU = 0.9
_MOST_DIFFERENCE = 0.02  # of scores: TF32 and half precision round


def agree(expected: Sequence[Detections], found: Sequence[Detections]) -> float:
    """Returns the share of what one of them is sure of that the other one finds as well, about there and as sure."""
    shared = [_share(*pair) for pair in zip(expected, found, strict=True)]
    shared += [_share(*pair) for pair in zip(found, expected, strict=True)]
    matched, total = np.sum(shared, axis=0)
    return float(matched / total) if total else 1.0


def detect_each(detector: Detector, canvases: Sequence[NDArray[np.uint8]], batch: int) -> list[Detections]:
    """Returns what is found in each canvas, in batches filled up with blank ones as a server's are."""
    found: list[Detections] = []
    for start in range(0, len(canvases), batch):
        group = canvases[start : start + batch]
        blank = [np.zeros_like(group[0])] * (batch - len(group))
        found += detector.infer([*group, *blank])[: len(group)]
    return found


def _share(expected: Detections, found: Detections) -> tuple[int, int]:
    sure = expected.select(expected.scores >= _LEAST_SCORE)
    matched = 0
    for box, score, label in zip(sure.boxes_xyxy, sure.scores, sure.labels, strict=True):
        alike = (found.labels == label) & (abs(found.scores - score) <= _MOST_DIFFERENCE)
        matched += bool((_overlap(box, found.boxes_xyxy[alike]) >= _LEAST_IOU).any())
    return matched, len(sure.scores)


def _overlap(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    corners = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = corners.clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    overlap: NDArray[np.float32] = shared / (areas - shared).clip(min=1e-6)
    return overlap

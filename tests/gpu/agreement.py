"""Measures how far the detections of two detectors agree."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections, Detector

_MIN_SCORE = 0.1  # below it, the order of detections is down to rounding
_MIN_IOU = 0.9
_MAX_SCORE_DIFFERENCE = 0.02  # TF32 and half precision round


def measure_agreement(expected: Sequence[Detections], found: Sequence[Detections]) -> float:
    """Returns the share of detections on either side that have a match on the other: same label, similar box and score.

    Detections with scores below 0.1 are left out; 1.0 if there are no others.
    """
    counts = [_count_matches(*pair) for pair in zip(expected, found, strict=True)]
    counts += [_count_matches(*pair) for pair in zip(found, expected, strict=True)]
    matched, total = np.sum(counts, axis=0)
    return float(matched / total) if total else 1.0


def detect_each(detector: Detector, canvases: Sequence[NDArray[np.uint8]], batch: int) -> list[Detections]:
    """Returns the detections of each canvas; the last batch is padded with blank canvases, as a server's are."""
    found: list[Detections] = []
    for start in range(0, len(canvases), batch):
        group = canvases[start : start + batch]
        blank = [np.zeros_like(group[0])] * (batch - len(group))
        found += detector.infer([*group, *blank])[: len(group)]
    return found


def _count_matches(expected: Detections, found: Detections) -> tuple[int, int]:
    clear = expected.select(expected.scores >= _MIN_SCORE)
    matched = 0
    for box, score, label in zip(clear.boxes_xyxy, clear.scores, clear.labels, strict=True):
        alike = (found.labels == label) & (abs(found.scores - score) <= _MAX_SCORE_DIFFERENCE)
        matched += bool((_iou(box, found.boxes_xyxy[alike]) >= _MIN_IOU).any())
    return matched, len(clear.scores)


def _iou(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    intersection = sides.clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    iou: NDArray[np.float32] = intersection / (areas - intersection).clip(min=1e-6)
    return iou

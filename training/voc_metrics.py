"""Pascal VOC's mean average precision (Everingham et al., IJCV 2010, section 4.2; development kit of 2010)."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from training.datasets.dataset import Dataset
from training.diagnosis import precision_by_recall
from training.overlap import box_iou

_LEAST_OVERLAP = 0.5
_RECALLS = np.arange(0.0, 1.1, 0.1)  # some a hair above the tenth, as where published figures come from


@dataclasses.dataclass(frozen=True)
class VocMetrics:
    """The mean over the classes that occur, in per cent, at IoU 0.5."""

    eleven_points: float  # until 2007: the mean of the best precision at recalls 0, 0.1 ... 1
    area: float  # since 2010: the area below the precision that falls monotonically


def measure_as_voc(dataset: Dataset, detections: list[Detections]) -> VocMetrics:
    """Scores `detections`, one for each photo of `dataset` in its order.

    What is ignored ("difficult") counts neither found nor missed.
    """
    eleven, area = [], []
    for label in range(len(dataset.labels)):
        if curve := _trace(dataset, detections, label):
            recall, precision = curve
            eleven.append(np.mean([precision[recall >= at].max(initial=0) for at in _RECALLS]))
            area.append((np.diff(recall, prepend=0) * precision).sum())
    return VocMetrics(float(np.mean(eleven)) * 100, float(np.mean(area)) * 100)


def _trace(
    dataset: Dataset, detections: list[Detections], label: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Recall and precision with each further detection of a class, by falling score; None where it does not occur."""
    scores, is_hit = [], []
    object_count = 0
    for photo, found in zip(dataset.photos, detections, strict=True):
        objects = photo.labels == label
        object_count += int((objects & ~photo.is_ignored).sum())
        own = found.select(found.labels == label)
        outcomes = _judge(own, photo.boxes_xyxy[objects], photo.is_ignored[objects])
        for score, outcome in zip(own.scores, outcomes, strict=True):
            if outcome is not None:
                scores.append(score)
                is_hit.append(outcome)
    if object_count == 0:
        return None
    return precision_by_recall(np.array(scores, np.float32), np.array(is_hit, np.bool_), object_count)


def _judge(found: Detections, boxes_xyxy: NDArray[np.float32], is_ignored: NDArray[np.bool_]) -> list[bool | None]:
    """Whether each detection of one class in one photo is a hit; None: of what is ignored.

    Each takes the object that it overlaps most; who comes second to an object, in order of the scores, misses.
    """
    outcomes: list[bool | None] = [False] * len(found.scores)
    if len(boxes_xyxy) == 0:
        return outcomes
    overlaps = box_iou(found.boxes_xyxy, boxes_xyxy)
    taken = np.zeros(len(boxes_xyxy), np.bool_)
    for row in np.argsort(-found.scores, kind="stable"):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= _LEAST_OVERLAP:
            outcomes[row] = None if is_ignored[best] else not taken[best]
            taken[best] = True
    return outcomes

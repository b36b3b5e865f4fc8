"""Pascal VOC's mean average precision (Everingham et al., IJCV 2010, section 4.2; development kit of 2010)."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from training.datasets.dataset import Dataset
from training.evaluation.diagnosis import precision_recall_curve
from training.evaluation.overlap import box_iou

_MIN_IOU = 0.5
_RECALLS = np.arange(0.0, 1.1, 0.1)  # some are slightly above the tenth, as in the code behind published figures


@dataclasses.dataclass(frozen=True)
class VocMetrics:
    """mAP at IoU 0.5 over the classes with objects, in per cent."""

    eleven_points: float  # until 2007: mean interpolated precision at recalls 0, 0.1 ... 1
    area: float  # since 2010: area under the interpolated precision-recall curve


def measure_as_voc(dataset: Dataset, detections: list[Detections]) -> VocMetrics:
    """Computes Pascal VOC's mAP of `detections`, one per photo of `dataset`, in its order.

    Ignored ("difficult") objects, and detections of them, do not count.
    """
    eleven, area = [], []
    for label in range(len(dataset.labels)):
        if curve := _precision_recall_curve(dataset, detections, label):
            recall, precision = curve
            eleven.append(np.mean([precision[recall >= at].max(initial=0) for at in _RECALLS]))
            area.append((np.diff(recall, prepend=0) * precision).sum())
    return VocMetrics(float(np.mean(eleven)) * 100, float(np.mean(area)) * 100)


def _precision_recall_curve(
    dataset: Dataset, detections: list[Detections], label: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Returns recall and interpolated precision after each detection of a class; None for a class without objects."""
    scores, is_correct = [], []
    object_count = 0
    for photo, found in zip(dataset.photos, detections, strict=True):
        objects = photo.labels == label
        object_count += int((objects & ~photo.is_ignored).sum())
        of_class = found.select(found.labels == label)
        outcomes = _match(of_class, photo.boxes_xyxy[objects], photo.is_ignored[objects])
        for score, outcome in zip(of_class.scores, outcomes, strict=True):
            if outcome is not None:
                scores.append(score)
                is_correct.append(outcome)
    if object_count == 0:
        return None
    return precision_recall_curve(np.array(scores, np.float32), np.array(is_correct, np.bool_), object_count)


def _match(found: Detections, boxes_xyxy: NDArray[np.float32], is_ignored: NDArray[np.bool_]) -> list[bool | None]:
    """Tells for each detection of one class in one photo whether it is correct; None if its object is ignored.

    Each detection is matched with the object that it overlaps most, by falling score. A second match is a duplicate,
    which is a false positive.
    """
    outcomes: list[bool | None] = [False] * len(found.scores)
    if len(boxes_xyxy) == 0:
        return outcomes
    overlaps = box_iou(found.boxes_xyxy, boxes_xyxy)
    is_matched = np.zeros(len(boxes_xyxy), np.bool_)
    for row in np.argsort(-found.scores, kind="stable"):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= _MIN_IOU:
            outcomes[row] = None if is_ignored[best] else not is_matched[best]
            is_matched[best] = True
    return outcomes

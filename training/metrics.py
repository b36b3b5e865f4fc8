"""COCO average precision, by the library that everybody compares with."""

import dataclasses
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from model.detector import Detections
from training.datasets.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Metrics:
    """COCO's figures in per cent; None where the data holds no such object."""

    ap: float  # mean over IoU .50 to .95
    ap50: float
    ap75: float
    ap_small: float | None  # area below 32 x 32 pixels
    ap_medium: float | None
    ap_large: float | None  # area above 96 x 96 pixels
    by_class: dict[str, tuple[float, float]]  # label → AP and AP50


def measure(dataset: Dataset, detections: list[Detections]) -> Metrics:
    """Scores `detections`, one for each photo of `dataset` in its order, at most 100 a photo as COCO counts."""
    truth = COCO(_as_coco(dataset))
    rows = [
        {
            "image_id": photo.id,
            "category_id": dataset.label_ids[label],
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "score": float(score),
        }
        for photo, found in zip(dataset.photos, detections, strict=True)
        for (x0, y0, x1, y1), score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True)
    ]
    if not rows:
        return Metrics(0.0, 0.0, 0.0, None, None, None, dict.fromkeys(dataset.labels, (0.0, 0.0)))
    evaluation = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=_silent)
    evaluation.run()
    ap, ap50, ap75, small, medium, large = evaluation.stats[:6]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class): all areas, 100 a photo
    by_class = {
        label: (_mean(precision[:, :, index]), _mean(precision[0, :, index]))
        for index, label in enumerate(dataset.labels)
        if (precision[0, :, index] >= 0).any()
    }
    by_size = (_per_cent(small), _per_cent(medium), _per_cent(large))
    return Metrics(float(ap) * 100, float(ap50) * 100, float(ap75) * 100, *by_size, by_class)


def _as_coco(dataset: Dataset) -> dict[str, Any]:
    annotations = [
        {
            "id": 0,
            "image_id": photo.id,
            "category_id": dataset.label_ids[label],
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "area": float(area),
            "iscrowd": int(is_ignored),
        }
        for photo in dataset.photos
        for (x0, y0, x1, y1), label, is_ignored, area in zip(
            photo.boxes_xyxy, photo.labels, photo.is_ignored, photo.areas, strict=True
        )
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return {
        "images": [{"id": photo.id, "width": photo.width, "height": photo.height} for photo in dataset.photos],
        "annotations": annotations,
        "categories": [
            {"id": label_id, "name": label} for label_id, label in zip(dataset.label_ids, dataset.labels, strict=True)
        ],
    }


def _mean(precision: NDArray[np.float64]) -> float:
    return float(precision.mean()) * 100


def _per_cent(value: float) -> float | None:
    return None if value < 0 else float(value) * 100  # COCO's own mark for "no such object" is -1


def _silent(*_: object) -> None:
    """COCOeval prints a table of its own; ours has the classes too."""

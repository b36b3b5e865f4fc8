"""COCO average precision, by faster-coco-eval."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.detector import Detections
from training.datasets.dataset import Dataset
from training.evaluation.coco_content import to_coco
from training.evaluation.keypoint_metrics import KeypointMetrics, measure_keypoints


@dataclasses.dataclass(frozen=True)
class Metrics:
    """COCO metrics in per cent; None for an object size that does not occur in the data."""

    ap: float  # mean over IoU .50 to .95
    ap50: float
    ap75: float
    ap_small: float | None  # area below 32 x 32 pixels
    ap_medium: float | None
    ap_large: float | None  # area above 96 x 96 pixels
    by_class: dict[str, tuple[float, float]]  # label → AP and AP50
    keypoints: KeypointMetrics | None = None  # None if the data has no annotated keypoints

    @property
    def task_ap(self) -> float:
        """AP that selects the best checkpoint: keypoint AP if the data has annotated keypoints, else box AP."""
        return self.keypoints.ap if self.keypoints else self.ap

    def __str__(self) -> str:
        boxes = f"AP {self.ap:.2f}, AP50 {self.ap50:.2f}"
        return f"{boxes}, keypoint AP {self.keypoints.ap:.2f}" if self.keypoints else boxes

    def print(self, console: Console) -> None:
        """Prints a table of all classes together and of each class."""
        table = Table("", "AP", "AP50", "AP75", "small", "medium", "large")
        sizes = (self.ap_small, self.ap_medium, self.ap_large)
        figures = [f"{v:.1f}" for v in (self.ap, self.ap50, self.ap75)]
        table.add_row("all", *figures, *("-" if v is None else f"{v:.1f}" for v in sizes), end_section=True)
        for label, (ap, ap50) in self.by_class.items():
            table.add_row(label, f"{ap:.1f}", f"{ap50:.1f}")
        console.print(table)
        if self.keypoints:
            keypoints = self.keypoints
            console.print(f"keypoints: AP {keypoints.ap:.1f}, AP50 {keypoints.ap50:.1f}, AP75 {keypoints.ap75:.1f}")

    def print_undetected(self, name: str, labels: Sequence[str], console: Console) -> None:
        """Prints which of the data's classes the model `name` with `labels` cannot detect, if any."""
        if undetected := [label for label in self.by_class if label not in labels]:
            classes = ", ".join(undetected)
            console.print(f"{name}: counted with an AP of 0, as the model lacks them: {classes}", soft_wrap=True)


def measure(dataset: Dataset, detections: list[Detections]) -> Metrics:
    """Computes COCO AP of `detections`, one per photo of `dataset`, in its order; at most 100 count per photo."""
    ground_truth = COCO(to_coco(dataset))
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
    keypoints = measure_keypoints(dataset, detections) if dataset.labels_with_keypoints else None
    if not rows:
        zeros = dict.fromkeys(dataset.labels, (0.0, 0.0))
        return Metrics(0.0, 0.0, 0.0, None, None, None, by_class=zeros, keypoints=keypoints)
    evaluation = COCOeval_faster(ground_truth, ground_truth.loadRes(rows), "bbox", print_function=lambda *_: None)
    evaluation.run()
    ap, ap50, ap75, small, medium, large = evaluation.stats[:6]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class): all areas, 100 per photo
    by_class = {
        label: (_mean(precision[:, :, index]), _mean(precision[0, :, index]))
        for index, label in enumerate(dataset.labels)
        if (precision[0, :, index] >= 0).any()
    }
    return Metrics(
        ap=float(ap) * 100,
        ap50=float(ap50) * 100,
        ap75=float(ap75) * 100,
        ap_small=_per_cent(small),
        ap_medium=_per_cent(medium),
        ap_large=_per_cent(large),
        by_class=by_class,
        keypoints=keypoints,
    )


def _mean(precision: NDArray[np.float64]) -> float:
    return float(precision.mean()) * 100


def _per_cent(value: float) -> float | None:
    return None if value < 0 else float(value) * 100  # COCO returns -1 if there is no such object

"""Compares with the evaluator of the package `mean-average-precision` on the same detections."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mean_average_precision import MetricBuilder

from model.detector import Detections
from tests.training.cases import make_case
from training.datasets.dataset import Dataset, Object, make_photo
from training.evaluation.voc_metrics import measure_as_voc


def inclusive(boxes_xyxy: Any) -> Any:
    """Converts to inclusive corners, as in VOC's files, for the other evaluator."""
    return boxes_xyxy - np.array([0, 0, 1, 1])


@pytest.mark.parametrize("seed", range(4))
def test_map_equals_that_of_another_evaluator(seed: int) -> None:
    dataset, detections = make_case(seed)
    other = MetricBuilder.build_evaluation_metric("map_2d", async_mode=False, num_classes=3)
    for photo, found in zip(dataset.photos, detections, strict=True):
        flags = np.column_stack([photo.labels, photo.is_ignored, np.zeros(len(photo.labels))])
        rows = np.column_stack([inclusive(found.boxes_xyxy), found.labels, found.scores])
        other.add(rows, np.hstack([inclusive(photo.boxes_xyxy), flags]))
    ours = measure_as_voc(dataset, detections)
    area = other.value(iou_thresholds=0.5)["mAP"]
    eleven = other.value(iou_thresholds=0.5, recall_thresholds=np.arange(0.0, 1.1, 0.1))["mAP"]
    assert ours.area == pytest.approx(100 * area, abs=0.01)
    assert ours.eleven_points == pytest.approx(100 * eleven, abs=0.01)
    assert 5 < ours.area < 95


def test_ground_truth_scores_a_hundred_and_no_detections_zero() -> None:
    dataset, _ = make_case(0)
    truth = [Detections(p.boxes_xyxy, np.full(len(p.labels), 0.5, np.float32), p.labels) for p in dataset.photos]
    perfect = measure_as_voc(dataset, truth)
    assert perfect.area == perfect.eleven_points == pytest.approx(100)
    nothing = [found.select(np.zeros(len(found.scores), bool)) for found in truth]
    assert measure_as_voc(dataset, nothing).area == 0


def test_difficult_objects_do_not_count() -> None:
    boxes = [(0, 0, 10, 10), (20, 20, 40, 40), (60, 60, 90, 90)]
    objects = [Object(boxes[0], 0), Object(boxes[1], 0, is_ignored=True), Object(boxes[2], 0)]
    dataset = Dataset(Path("x"), ("a",), (1,), (make_photo(1, Path("p"), 100, 100, objects),))

    def measure(*found: int) -> float:
        rows = np.array([boxes[each] for each in found], np.float32)
        scores = np.linspace(0.9, 0.1, len(found), dtype=np.float32)
        return measure_as_voc(dataset, [Detections(rows, scores, np.zeros(len(found), np.int64))]).area

    assert measure(0, 2) == measure(1, 1, 0, 1, 2) == 100
    assert measure(0) == measure(1, 0) == 50
    assert measure(0, 0, 2) == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))  # the duplicate is a false positive

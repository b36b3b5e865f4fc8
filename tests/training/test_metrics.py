import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model.detector import Detections
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.evaluation.metrics import measure


@pytest.fixture(scope="module")
def dataset(shapes: Path) -> Dataset:
    return load_dataset(shapes / "val.json", shapes / "images")


def perfect(dataset: Dataset) -> list[Detections]:
    return [
        Detections(photo.boxes_xyxy, np.full(len(photo.labels), 0.9, np.float32), photo.labels)
        for photo in dataset.photos
    ]


def test_ground_truth_scores_a_hundred(dataset: Dataset) -> None:
    metrics = measure(dataset, perfect(dataset))
    assert (metrics.ap, metrics.ap50, metrics.ap75) == (pytest.approx(100), pytest.approx(100), pytest.approx(100))
    assert metrics.by_class["circle"] == (pytest.approx(100), pytest.approx(100))


def test_loose_boxes_count_at_low_iou_only(dataset: Dataset) -> None:
    loose = []
    for found in perfect(dataset):
        boxes = found.boxes_xyxy.copy()
        boxes[:, 2] = boxes[:, 0] + (boxes[:, 2] - boxes[:, 0]) * 0.62  # IoU 0.62: passes .50, .55 and .60 of ten
        loose.append(dataclasses.replace(found, boxes_xyxy=boxes))
    metrics = measure(dataset, loose)
    assert metrics.ap50 == pytest.approx(100)
    assert metrics.ap == pytest.approx(30)
    assert metrics.ap75 == 0


def test_wrong_labels_score_nothing(dataset: Dataset) -> None:
    wrong = [dataclasses.replace(found, labels=(found.labels + 1) % 3) for found in perfect(dataset)]
    assert measure(dataset, wrong).ap == pytest.approx(0, abs=5)


def test_no_detections_score_zero(dataset: Dataset) -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert measure(dataset, [nothing] * len(dataset.photos)).ap == 0


def test_sizes_that_do_not_occur_have_no_ap(dataset: Dataset) -> None:
    assert measure(dataset, perfect(dataset)).ap_large is None


def test_ignored_objects_do_not_count(dataset: Dataset) -> None:
    first = dataset.photos[0]
    crowd = dataclasses.replace(first, is_ignored=np.ones(len(first.labels), bool))
    with_crowd = dataclasses.replace(dataset, photos=(crowd, *dataset.photos[1:]))
    found = perfect(dataset)
    nothing = found[0].select(np.zeros(len(first.labels), bool))
    assert measure(with_crowd, found).ap == pytest.approx(100)
    assert measure(with_crowd, [nothing, *found[1:]]).ap == pytest.approx(100)
    assert measure(dataset, [nothing, *found[1:]]).ap < 99

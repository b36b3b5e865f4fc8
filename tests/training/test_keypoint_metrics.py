import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from model.detector import Detections
from tests.training.joints import add_joints
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.evaluation.keypoint_metrics import choose_sigma, measure_keypoints
from training.evaluation.metrics import measure


@pytest.fixture
def dataset(shapes: Path, tmp_path: Path) -> Dataset:
    return load_dataset(add_joints(shapes / "val.json", tmp_path / "joints.json"), shapes / "images")


def find_all(dataset: Dataset, similarity: float = 1.0) -> list[Detections]:
    """Detects every object, with each keypoint displaced to the given similarity."""
    found = []
    for photo in dataset.photos:
        # exp(-d² / (2 area (2 sigma)²)), with sigma 0.05
        distance = np.sqrt(-2 * photo.areas * 0.1**2 * math.log(similarity))
        joints = photo.keypoints + np.stack([distance, 0 * distance, 0 * distance], axis=1)[:, None]
        scores = np.full(len(photo.labels), 0.9, np.float32)
        found.append(Detections(photo.boxes_xyxy, scores, photo.labels, joints.astype(np.float32)))
    return found


@pytest.mark.parametrize(
    ("similarity", "ap", "ap50", "ap75"), [(1.0, 100, 100, 100), (0.72, 50, 100, 0), (0.4, 0, 0, 0)]
)
def test_keypoints_count_at_thresholds_up_to_their_similarity(
    dataset: Dataset, similarity: float, ap: float, ap50: float, ap75: float
) -> None:
    metrics = measure_keypoints(dataset, find_all(dataset, similarity))
    assert (metrics.ap, metrics.ap50, metrics.ap75) == pytest.approx((ap, ap50, ap75))


def test_keypoint_ap_is_the_task_ap_if_there_are_keypoints(dataset: Dataset) -> None:
    metrics = measure(dataset, find_all(dataset, 0.72))
    assert (metrics.ap, metrics.task_ap) == pytest.approx((100, 50))
    boxes_alone = dataclasses.replace(metrics, keypoints=None)
    assert boxes_alone.task_ap == metrics.ap


def test_data_without_annotated_keypoints_has_no_keypoint_ap(dataset: Dataset) -> None:
    unknown = [dataclasses.replace(photo, keypoints=0 * photo.keypoints) for photo in dataset.photos]
    metrics = measure(dataclasses.replace(dataset, photos=tuple(unknown)), find_all(dataset))
    assert metrics.keypoints is None
    assert metrics.task_ap == pytest.approx(100)


def test_objects_without_annotated_keypoints_do_not_count(dataset: Dataset) -> None:
    first, *rest = dataset.photos
    unknown = dataclasses.replace(first, keypoints=np.full_like(first.keypoints, -1))
    some = dataclasses.replace(dataset, photos=(unknown, *rest))
    found = find_all(dataset)
    assert measure_keypoints(some, found).ap == pytest.approx(100)
    nothing = Detections(first.boxes_xyxy[:0], np.zeros(0, np.float32), first.labels[:0], first.keypoints[:0])
    assert measure_keypoints(some, [nothing, *found[1:]]).ap == pytest.approx(100)
    assert measure_keypoints(dataset, [nothing, *found[1:]]).ap < 95


def test_detections_without_keypoints_score_zero(dataset: Dataset) -> None:
    assert measure_keypoints(dataset, [dataclasses.replace(f, keypoints=None) for f in find_all(dataset)]).ap == 0


def test_coco_keypoint_names_have_coco_sigmas() -> None:
    assert (choose_sigma("nose"), choose_sigma("left_hip"), choose_sigma("Right_Ankle")) == (0.026, 0.107, 0.089)
    assert choose_sigma("tail") == 0.05

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model.detector import Detections
from tests.training.cases import make_case
from training.datasets.dataset import Dataset, Object, Photo, make_photo
from training.evaluation.diagnosis import (
    FALSE_POSITIVE,
    IGNORED_DETECTION,
    THRESHOLDS,
    diagnose,
    match_detections,
    measure_calibration,
)
from training.evaluation.metrics import measure

Box = tuple[float, float, float, float]
LEFT, RIGHT, BELOW = (0, 0, 10, 10), (50, 0, 60, 10), (0, 50, 10, 60)
LABELS = ("cat", "dog", "unseen")


def photo(*objects: Object, number: int = 1) -> Photo:
    return make_photo(number, Path(f"{number}.jpg"), 100, 100, objects)


def find(*rows: tuple[Box, float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


def dataset(photos: Sequence[Photo]) -> Dataset:
    return Dataset(Path("x.json"), LABELS, (1, 2, 3), tuple(photos))


def test_highest_score_matches_the_object_and_duplicates_are_false_positives() -> None:
    found = find((LEFT, 0.5, 0), ((0, 0, 10, 9), 0.9, 0), (RIGHT, 0.8, 0))
    assert match_detections(photo(Object(LEFT, 0)), found).tolist() == [FALSE_POSITIVE, 0, FALSE_POSITIVE]


def test_match_needs_iou_of_half_and_the_same_class() -> None:
    half, less = (0, 0, 10, 5), (0, 0, 10, 4.99)
    outcomes = [
        match_detections(photo(Object(LEFT, 0)), find((box, 0.5, label)))
        for box, label in ((half, 0), (less, 0), (half, 1))
    ]
    assert np.concatenate(outcomes).tolist() == [0, FALSE_POSITIVE, FALSE_POSITIVE]


def test_detection_falls_back_to_the_next_unmatched_object() -> None:
    twins = photo(Object((0, 0, 10, 10), 0), Object((0, 2, 10, 12), 0))
    assert match_detections(twins, find(((0, 0, 10, 10), 0.9, 0), ((0, 0, 10, 11), 0.8, 0))).tolist() == [0, 1]


def test_detections_in_an_ignored_region_of_their_class_are_ignored() -> None:
    crowd = Object((0, 0, 40, 40), 0, is_ignored=True)
    rows = ((LEFT, 0.9, 0), ((35, 0, 45, 10), 0.8, 0), ((36, 0, 46, 10), 0.7, 0), (LEFT, 0.6, 1))
    expected = [IGNORED_DETECTION, IGNORED_DETECTION, FALSE_POSITIVE, FALSE_POSITIVE]
    assert match_detections(photo(crowd), find(*rows)).tolist() == expected
    assert match_detections(photo(crowd, Object(LEFT, 0)), find(*rows)).tolist() == [1, *expected[1:]]


@pytest.mark.parametrize("seed", range(3))
def test_mean_of_the_precision_curve_is_coco_ap50(seed: int) -> None:
    data, detections = make_case(seed)
    crowds = tuple(
        dataclasses.replace(each, is_ignored=np.arange(len(each.labels)) % 3 == 2) for each in data.photos
    )  # every third object of a photo is ignored
    data = dataclasses.replace(data, photos=crowds)
    metrics = measure(data, detections)
    classes = diagnose(data, detections).classes
    assert [each.objects for each in classes] == [
        sum(int((each.labels[~each.is_ignored] == label).sum()) for each in crowds) for label in range(3)
    ]
    for each in classes:
        assert each.precision is not None
        assert each.precision.mean() * 100 == pytest.approx(metrics.by_class[each.label][1], abs=1e-6)
        assert 5 < each.precision.mean() * 100 < 95


def test_threshold_maximises_f1() -> None:
    objects = photo(Object(LEFT, 0), Object(RIGHT, 0), Object(BELOW, 1))
    far = (80, 80, 90, 90)
    diagnosis = diagnose(dataset([objects]), [find((LEFT, 0.9, 0), (far, 0.6, 1), (far, 0.5, 0), (RIGHT, 0.3, 0))])
    sweep = diagnosis.sweep
    at = {f"{threshold:.2f}": row for row, threshold in enumerate(THRESHOLDS)}
    rows = [at["0.30"], at["0.31"], at["0.60"], at["0.61"], at["0.90"], at["0.91"]]
    np.testing.assert_allclose(sweep.precision[rows], [1 / 2, 1 / 3, 1 / 2, 1, 1, 0])
    np.testing.assert_allclose(sweep.recall[rows], [2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(sweep.f1[rows], [4 / 7, 1 / 3, 2 / 5, 1 / 2, 1 / 2, 0])
    assert diagnosis.threshold == 0.16  # the middle of the plateau from .01 to .30
    assert [(each.true_positives, each.false_positives) for each in diagnosis.classes] == [(2, 1), (0, 1), (0, 0)]


def test_each_object_and_detection_is_counted_once_in_the_confusion_matrix() -> None:
    first = photo(
        Object(LEFT, 0), Object(RIGHT, 0), Object(BELOW, 1), Object((50, 50, 90, 90), 1, is_ignored=True), number=1
    )
    second = photo(Object(LEFT, 1), number=2)
    row = [(10 * step, 0, 10 * step + 10, 10) for step in range(10)]  # enough cats for a low threshold
    third = photo(*(Object(box, 0) for box in row), number=3)
    found = [
        find(
            (LEFT, 0.9, 0),  # true positive
            (LEFT, 0.8, 1),  # wrong class on a matched object
            (RIGHT, 0.7, 1),  # cat detected as dog
            ((50, 0, 60, 9), 0.6, 1),  # duplicate of it
            ((60, 60, 70, 70), 0.5, 1),  # in an ignored region
            ((80, 0, 90, 10), 0.4, 0),  # background
        ),
        find((LEFT, 0.9, 1)),
        find(*((box, 0.4, 0) for box in row)),
    ]
    diagnosis = diagnose(dataset([first, second, third]), found)
    assert diagnosis.threshold < 0.4
    assert diagnosis.confusion.tolist() == [
        [11, 1, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 0, 0],
        [1, 2, 0, 0],
    ]


def test_calibration_error_is_the_weighted_difference_of_score_and_precision() -> None:
    scores = np.array([0.15, 0.15, 0.15, 0.15, 0.95, 1.0, 0.05, 0.05], np.float32)
    is_correct = np.array([True, False, False, False, True, True, True, True])
    calibration = measure_calibration(scores, is_correct)
    assert calibration.counts.tolist() == [4, 0, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(calibration.mean_score[[0, 8]], [0.15, 0.975], rtol=1e-6)
    np.testing.assert_allclose(calibration.precision[[0, 8]], [0.25, 1])
    assert calibration.error == pytest.approx((4 * 0.10 + 2 * 0.025) / 6)


def test_score_bins_include_their_lower_edge() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.9], np.float32)
    assert measure_calibration(scores, np.ones(5, bool)).counts.tolist() == [1, 1, 1, 0, 0, 0, 1, 0, 1]


def test_photos_are_ranked_by_f1_with_fuller_ones_at_the_ends() -> None:
    cats = [Object(LEFT, 0), Object(RIGHT, 0), Object(BELOW, 0)]
    hits = [(LEFT, 0.9, 0), (RIGHT, 0.9, 0), (BELOW, 0.9, 0)]
    cases = [
        (cats[:1], hits[:1]),  # F1 1
        (cats[:2], []),  # 0, two missed
        (cats, hits),  # 1, of three
        (cats[:2], hits[:1]),  # 2/3
        ([], []),  # none
        (cats[:1], []),  # 0, one missed
        ([], hits[:1]),  # 0, one false positive
    ]
    data = dataset([photo(*objects, number=number) for number, (objects, _) in enumerate(cases)])
    diagnosis = diagnose(data, [find(*rows) for _, rows in cases])
    ranking = diagnosis.rank_photos()
    assert ranking == [2, 0, 3, 5, 6, 1]
    f1 = [diagnosis.outcomes[index].f1 for index in ranking]
    assert f1 == [1, 1, pytest.approx(2 / 3), 0, 0, 0]
    assert diagnosis.outcomes[4].f1 is None
    counts = [(each.true_positives, each.false_negatives, each.false_positives) for each in diagnosis.outcomes]
    assert counts == [(1, 0, 0), (0, 2, 0), (3, 0, 0), (1, 1, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_without_detections_all_objects_are_missed() -> None:
    diagnosis = diagnose(dataset([photo(Object(LEFT, 0), Object(RIGHT, 1)), photo(number=2)]), [find(), find()])
    assert diagnosis.sweep.f1.tolist() == [0] * 99
    assert diagnosis.threshold == 0.5
    assert diagnosis.calibration.error is None
    assert diagnosis.confusion.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0] * 4, [0] * 4]
    curves = [each.precision for each in diagnosis.classes]
    assert curves[0] is not None
    assert curves[0].tolist() == [0] * 101
    assert curves[2] is None

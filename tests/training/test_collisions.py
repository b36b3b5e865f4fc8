from pathlib import Path

import numpy as np
import pytest

from model.detector import Detections
from training.datasets.dataset import Dataset, Object, make_photo
from training.evaluation.collisions import find_collisions, measure_crowds

# centres at (16, 16), (18, 18), (20.5, 16) and (40, 40) of an unscaled photo; the ignored object does not count
BOXES = [(6, 6, 26, 26), (16, 16, 20, 20), (18.5, 12, 22.5, 20), (30, 30, 50, 50)]
OBJECTS = [Object(box, 0) for box in BOXES] + [Object(BOXES[3], 0, is_ignored=True), Object(BOXES[3], 1)]
PHOTO = make_photo(1, Path("p"), 64, 64, OBJECTS)


@pytest.mark.parametrize(
    ("input_size", "stride", "collides", "is_adjacent"),
    [(64, 4, [0, 1], [2]), (64, 2, [], [0, 1, 2]), (128, 4, [], [0, 1, 2]), (64, 32, [0, 1, 2], [3])],
)
def test_objects_with_colliding_or_adjacent_centres_are_found(
    input_size: int, stride: int, collides: list[int], is_adjacent: list[int]
) -> None:
    found = find_collisions(PHOTO, input_size, stride)
    assert np.flatnonzero(found.collides).tolist() == collides
    assert np.flatnonzero(found.is_adjacent).tolist() == is_adjacent


@pytest.mark.parametrize(("rows", "hits"), [([0, 1, 2, 3], 3), ([0, 0, 3], 1), ([3], 0), ([], 0)])
def test_crowd_recall_counts_only_crowded_objects(rows: list[int], hits: int) -> None:
    dataset = Dataset(Path("x"), ("a", "b"), (1, 2), (PHOTO,))
    found = Detections(PHOTO.boxes_xyxy[rows], np.full(len(rows), 0.5, np.float32), np.zeros(len(rows), np.int64))
    recall = measure_crowds(dataset, [found], 64)
    assert (recall.objects, recall.found) == (3, hits)
    assert str(recall).endswith(f"stride 4: {hits / 3:.1%} found")

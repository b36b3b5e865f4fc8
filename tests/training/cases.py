"""Data sets and detections for tests of metrics."""

from pathlib import Path
from typing import Any

import numpy as np

from model.detector import Detections
from training.datasets.dataset import Dataset, Object, make_photo


def perfect(dataset: Dataset) -> list[Detections]:
    """Returns every object as a detection, with a score of 0.9."""
    return [Detections(p.boxes_xyxy, np.full(len(p.labels), 0.9, np.float32), p.labels) for p in dataset.photos]


def make_case(seed: int, classes: int = 3, photos: int = 30) -> tuple[Dataset, list[Detections]]:
    """Draws random objects, two detections near each, and detections elsewhere."""
    random = np.random.default_rng(seed)

    def boxes(count: int) -> Any:
        corners = random.uniform(0, 60, (count, 2))
        return np.hstack([corners, corners + random.uniform(10, 40, (count, 2))]).astype(np.float32)

    data, found = [], []
    for number in range(photos):
        truth = boxes(random.integers(0, 5))
        labels = random.integers(0, classes, len(truth))
        objects = [Object(box.tolist(), int(label)) for box, label in zip(truth, labels, strict=True)]
        data.append(make_photo(number, Path("p"), 100, 100, objects))
        near = np.repeat(truth, 2, axis=0) + random.normal(0, 3, (2 * len(truth), 4)).astype(np.float32)
        far = boxes(3)
        every = np.concatenate([near, far])
        of_class = np.concatenate([np.repeat(labels, 2), random.integers(0, classes, len(far))])
        found.append(Detections(every, random.random(len(every)).astype(np.float32), of_class))
    return Dataset(Path("x"), tuple("abc"[:classes]), tuple(range(classes)), tuple(data)), found

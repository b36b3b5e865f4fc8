"""Centre collisions: objects of one class that share a heatmap cell or lie in adjacent cells."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from model.letterbox import place
from model.network.heads import STRIDE
from training.datasets.dataset import Dataset, Photo
from training.evaluation.diagnosis import match_detections


@dataclasses.dataclass(frozen=True)
class Collisions:
    """Which of a photo's objects (N,) collide with another of their class; ignored objects never do."""

    collides: NDArray[np.bool_]  # its centre shares a cell with another: the heatmap has one peak for both
    is_adjacent: NDArray[np.bool_]  # its centre is in a cell next to another's: 3x3 max pooling may drop one peak

    @property
    def is_crowded(self) -> NDArray[np.bool_]:
        """Which objects collide or are adjacent: (N,)."""
        return self.collides | self.is_adjacent


@dataclasses.dataclass(frozen=True)
class CrowdRecall:
    """The recall of objects that collide or are adjacent at the paper's stride."""

    objects: int
    found: int

    def __str__(self) -> str:
        share = f": {self.found / self.objects:.1%} found" if self.objects else ""
        where = f"in the same or an adjacent cell as another of their class, stride {STRIDE}"
        return f"{self.objects} objects {where}{share}"


def find_collisions(photo: Photo, input_size: int, stride: int) -> Collisions:
    """Finds the centre collisions at a stride, in the photo letterboxed to `input_size` pixels square."""
    boxes = place(photo.width, photo.height, [(input_size, input_size)]).from_photo(photo.boxes_xyxy)
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(np.int64)
    distance = np.abs(cells[:, None] - cells).max(2)  # (N, N), in cells
    is_valid = ~photo.is_ignored
    comparable = (photo.labels[:, None] == photo.labels) & is_valid[:, None] & is_valid
    np.fill_diagonal(comparable, val=False)
    collides = (comparable & (distance == 0)).any(1)
    return Collisions(collides, (comparable & (distance == 1)).any(1) & ~collides)


def measure_crowds(dataset: Dataset, detections: list[Detections], input_size: int) -> CrowdRecall:
    """Counts the crowded objects that `detections`, in the order of the photos, match at an IoU of 0.5."""
    objects = found = 0
    for photo, of_photo in zip(dataset.photos, detections, strict=True):
        is_crowded = find_collisions(photo, input_size, STRIDE).is_crowded
        is_hit = np.isin(np.arange(len(is_crowded)), match_detections(photo, of_photo))
        objects += int(is_crowded.sum())
        found += int((is_crowded & is_hit).sum())
    return CrowdRecall(objects, found)

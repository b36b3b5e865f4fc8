"""Objects that a heatmap cannot tell apart: their centres lie in one cell, or in cells side by side."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from model.letterbox import place
from training.datasets.dataset import Dataset, Photo
from training.diagnosis import match_detections

COARSE_STRIDE = 4  # the paper's, by whose grid crowds are told


@dataclasses.dataclass(frozen=True)
class Collisions:
    """Whether each of a photo's objects (N,) meets another of its class; ignored ones do not."""

    collides: NDArray[np.bool_]  # its centre lies in the other's cell: the heatmap has one centre for both
    is_beside: NDArray[np.bool_]  # in a cell beside the other's: of two peaks there, the 3x3 maximum leaves one

    @property
    def is_crowded(self) -> NDArray[np.bool_]:
        """Which objects share a cell with another, or lie in one beside: (N,)."""
        return self.collides | self.is_beside


@dataclasses.dataclass(frozen=True)
class CrowdRecall:
    """The objects that collide or lie beside another at the paper's stride, and how many of them were found."""

    objects: int
    found: int

    def __str__(self) -> str:
        share = f": {self.found / self.objects:.1%} found" if self.objects else ""
        return f"{self.objects} objects in or beside the cell of another of their class, stride {COARSE_STRIDE}{share}"


def find_collisions(photo: Photo, input_size: int, stride: int) -> Collisions:
    """Which objects' centres meet at a stride, in the photo letterboxed to `input_size` pixels squared."""
    boxes = place(photo.width, photo.height, [(input_size, input_size)]).from_photo(photo.boxes_xyxy)
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(np.int64)
    distance = np.abs(cells[:, None] - cells).max(2)  # (N, N), in cells
    counts = ~photo.is_ignored
    may_meet = (photo.labels[:, None] == photo.labels) & counts[:, None] & counts
    np.fill_diagonal(may_meet, val=False)
    collides = (may_meet & (distance == 0)).any(1)
    return Collisions(collides, (may_meet & (distance == 1)).any(1) & ~collides)


def measure_crowds(dataset: Dataset, detections: list[Detections], input_size: int) -> CrowdRecall:
    """How many crowded objects `detections`, one for each photo of `dataset` in its order, hit at an IoU of 0.5."""
    objects = found = 0
    for photo, of_photo in zip(dataset.photos, detections, strict=True):
        is_crowded = find_collisions(photo, input_size, COARSE_STRIDE).is_crowded
        is_hit = np.isin(np.arange(len(is_crowded)), match_detections(photo, of_photo))
        objects += int(is_crowded.sum())
        found += int((is_crowded & is_hit).sum())
    return CrowdRecall(objects, found)

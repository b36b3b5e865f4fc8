"""Draws what was found in a photo of the data set."""

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from model.draw import draw_detections
from model.skeleton import NO_JOINTS, Skeleton
from training.datasets.dataset import Photo
from training.loader import read_photo


def draw_predictions(
    photo: Photo,
    found: Detections,
    labels: tuple[str, ...],
    skeleton: Skeleton = NO_JOINTS,
    threshold: float = 0.3,
) -> NDArray[np.uint8]:
    """The photo (h, w, 3), RGB, with what was found above `threshold`."""
    return draw_detections(read_photo(photo), found.select(found.scores >= threshold), labels, skeleton)

"""Draws detections over a photo."""

import cv2
import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from training.coco import Photo
from training.loader import read_photo


def draw_predictions(
    photo: Photo, found: Detections, labels: tuple[str, ...], threshold: float = 0.3
) -> NDArray[np.uint8]:
    """The photo (h, w, 3), RGB, with what was found above `threshold`."""
    picture = read_photo(photo).copy()
    for (x0, y0, x1, y1), score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True):
        if score < threshold:
            continue
        hue = np.array([[[int(label) * 137 % 180, 220, 255]]], np.uint8)  # steps of the golden angle: far apart
        color = [int(v) for v in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]]
        corner = (int(x0), int(y0))
        cv2.rectangle(picture, corner, (int(x1), int(y1)), color, 2)
        text = f"{labels[label]} {score:.2f}"
        cv2.putText(picture, text, (corner[0] + 2, max(10, corner[1] + 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, 1)
    return picture

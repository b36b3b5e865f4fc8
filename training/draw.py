"""Draws what was found in a photo of the data set."""

import cv2
import numpy as np
from numpy.typing import NDArray

from model.draw import Colour, draw_boxes
from training.datasets.dataset import Dataset, Photo
from training.diagnosis import Outcome
from training.loader import read_photo

# of Okabe and Ito's palette, which colour-blind eyes tell apart
HIT: Colour = (0, 190, 140)
FALSE_ALARM: Colour = (235, 95, 20)
MISS: Colour = (250, 225, 60)
TRUTH: Colour = (255, 255, 255)
NOT_COUNTED: Colour = (150, 150, 150)

_GREY = 60
_LEAST_TAGGED = 0.08  # of the photo's side: the tags of smaller boxes would hide more than they say


def draw_outcome(
    photo: Photo, outcome: Outcome, dataset: Dataset, longest_side: int, is_bare: bool = False
) -> NDArray[np.uint8]:
    """A photo of `dataset` with hits, false alarms and misses, and thinly the true boxes of hits and what is ignored.

    What was found is tagged with label and score, what was missed with its label, unless it is small; joints are drawn
    where there are any, those of what was missed as they were annotated. A bare one is grey, without the photo itself.

    Returns: (h, w, 3), RGB, shrunk to `longest_side` pixels where it is larger.
    """
    shrink = min(1.0, longest_side / max(photo.width, photo.height))
    picture = np.full((photo.height, photo.width, 3), _GREY, np.uint8) if is_bare else read_photo(photo)
    if shrink < 1:
        picture = np.asarray(cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), np.uint8)
    truth = (photo.boxes_xyxy * shrink).round().astype(int)
    for box, is_ignored, is_missed in zip(truth.tolist(), photo.is_ignored, outcome.is_missed, strict=True):
        if not is_missed:
            colour = NOT_COUNTED if is_ignored else TRUTH
            cv2.rectangle(picture, (box[0], box[1]), (box[2] - 1, box[3] - 1), colour, 1)

    found = outcome.found
    is_hit = outcome.objects >= 0
    boxes = np.concatenate([found.boxes_xyxy, photo.boxes_xyxy[outcome.is_missed]]) * np.float32(shrink)
    tags = [f"{dataset.labels[label]} {score:.0%}" for label, score in zip(found.labels, found.scores, strict=True)]
    tags += [dataset.labels[label] for label in photo.labels[outcome.is_missed]]
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1) / (picture.shape[0] * picture.shape[1]))
    tags = [tag if side >= _LEAST_TAGGED else "" for tag, side in zip(tags, sides, strict=True)]
    colours = [HIT if hit else FALSE_ALARM for hit in is_hit] + [MISS] * outcome.misses
    joints = None
    if found.keypoints is not None:
        scale = np.array([shrink, shrink, 1], np.float32)
        joints = np.concatenate([found.keypoints, photo.keypoints[outcome.is_missed]]) * scale
    return draw_boxes(picture, boxes, tags, colours, joints, dataset.skeleton)

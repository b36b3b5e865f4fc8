"""Draws detections and ground truth on a photo of the data set."""

import cv2
import numpy as np
from numpy.typing import NDArray

from model.draw import Colour, draw_boxes
from training.datasets.dataset import Dataset, Photo
from training.evaluation.diagnosis import Outcome
from training.loader import read_photo

# from Okabe and Ito's palette for colour-blind readers
COLOURS: dict[str, Colour] = {
    "true positive": (0, 190, 140),
    "false positive": (235, 95, 20),
    "missed": (250, 225, 60),
    "ground truth of a true positive": (255, 255, 255),
    "ignored": (150, 150, 150),
}

_GREY = 60
_MIN_TAGGED_SIDE = 0.08  # of the photo's side: tags would cover smaller boxes


def draw_outcome(
    photo: Photo, outcome: Outcome, dataset: Dataset, longest_side: int, boxes_only: bool = False
) -> NDArray[np.uint8]:
    """Draws true positives, false positives and missed objects on a photo of `dataset`.

    Ground truth of true positives and ignored regions have thin lines. Detections are tagged with label and score,
    missed objects with their label, unless they are small. Keypoints are drawn too, annotated ones for missed objects.
    With `boxes_only` a grey background replaces the photo.

    Returns (h, w, 3), RGB, with the longer side at most `longest_side` pixels.
    """
    scale = min(1.0, longest_side / max(photo.width, photo.height))
    picture = np.full((photo.height, photo.width, 3), _GREY, np.uint8) if boxes_only else read_photo(photo)
    if scale < 1:
        picture = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    ground_truth = (photo.boxes_xyxy * scale).round().astype(int)
    for box, is_ignored, is_missed in zip(ground_truth.tolist(), photo.is_ignored, outcome.is_missed, strict=True):
        if not is_missed:
            colour = COLOURS["ignored" if is_ignored else "ground truth of a true positive"]
            cv2.rectangle(picture, (box[0], box[1]), (box[2] - 1, box[3] - 1), colour, 1)

    found = outcome.detections
    is_correct = outcome.matches >= 0
    boxes = np.concatenate([found.boxes_xyxy, photo.boxes_xyxy[outcome.is_missed]]) * np.float32(scale)
    tags = [f"{dataset.labels[label]} {score:.0%}" for label, score in zip(found.labels, found.scores, strict=True)]
    tags += [dataset.labels[label] for label in photo.labels[outcome.is_missed]]
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1) / (picture.shape[0] * picture.shape[1]))
    tags = [tag if side >= _MIN_TAGGED_SIDE else "" for tag, side in zip(tags, sides, strict=True)]
    colours = [COLOURS["true positive" if correct else "false positive"] for correct in is_correct]
    colours += [COLOURS["missed"]] * outcome.false_negatives
    keypoints = None
    if found.keypoints is not None:
        factors = np.array([scale, scale, 1], np.float32)
        keypoints = np.concatenate([found.keypoints, photo.keypoints[outcome.is_missed]]) * factors
    return draw_boxes(picture, boxes, tags, colours, keypoints, dataset.skeleton)

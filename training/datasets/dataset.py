"""A checked data set, whatever format it came in."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.skeleton import NO_JOINTS, Skeleton

_SLACK = 1.0  # pixels that a box or a joint may stick out of its picture: annotators round
ABSENT, HIDDEN, VISIBLE = 0, 1, 2  # COCO's marks of a joint: it has no place, or one that may be seen or not
UNKNOWN = -1  # nobody annotated this object's joints

Report = Callable[[str], None]  # told of each fault; where it returns, the entry at fault is left out


class InvalidDataset(Exception):
    """The annotations cannot be trained on; the message names the file and the annotation."""


class InvalidJoint(Exception):
    """A joint has a mark of its own, or lies outside its picture."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """One picture and its objects.

    What `is_ignored` is there and is no object to learn: a crowd, or what its annotators found too difficult. It is
    neither taught nor counted, found or not.
    """

    id: int
    path: Path
    width: int  # pixels
    height: int
    boxes_xyxy: NDArray[np.float32]  # (N, 4), pixels
    labels: NDArray[np.int64]  # (N,), index into `Dataset.labels`
    is_ignored: NDArray[np.bool_]  # (N,)
    areas: NDArray[np.float32]  # (N,), pixels: the object's own where it is known, and else its box's
    keypoints: NDArray[np.float32]  # (N, J, 3), x and y in pixels and COCO's visibility, or `UNKNOWN` of all joints


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is in here can be trained on."""

    annotations_path: Path
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]  # the format's category ids, in the order of `labels`
    photos: tuple[Photo, ...]
    skeleton: Skeleton = NO_JOINTS

    @functools.cached_property
    def shown_classes(self) -> NDArray[np.bool_]:
        """Which photos show which classes, what is ignored aside: (photos, labels)."""
        shows = np.zeros((len(self.photos), len(self.labels)), np.bool_)
        for row, photo in zip(shows, self.photos, strict=True):
            row[photo.labels[~photo.is_ignored]] = True
        return shows


@dataclasses.dataclass(frozen=True)
class Object:
    """One annotation that has been read."""

    box_xyxy: Sequence[float]
    label: int
    is_ignored: bool = False
    area: float | None = None
    keypoints: Sequence[Sequence[float]] | None = None  # x, y and visibility of each joint; None where there are none


def raise_fault(fault: str) -> None:
    """Raises `InvalidDataset` at the first fault."""
    raise InvalidDataset(fault)


def make_photo(
    photo_id: int, path: Path, width: int, height: int, objects: Sequence[Object], joint_count: int = 0
) -> Photo:
    """Lays out what was read."""
    boxes = np.array([each.box_xyxy for each in objects], np.float32).reshape(-1, 4)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
    keypoints = np.zeros((len(objects), joint_count, 3), np.float32)
    for row, each in zip(keypoints, objects, strict=True):
        row[:] = (0, 0, ABSENT) if each.keypoints is None else each.keypoints
    areas = [box_area if each.area is None else each.area for each, box_area in zip(objects, box_areas, strict=True)]
    return Photo(
        photo_id,
        path,
        width,
        height,
        boxes,
        np.array([each.label for each in objects], np.int64),
        np.array([each.is_ignored for each in objects], np.bool_),
        np.array(areas, np.float32),
        keypoints,
    )


def make_dataset(
    annotations_path: Path,
    labels: Sequence[str],
    label_ids: Sequence[int],
    photos: Sequence[Photo],
    report: Report,
    skeleton: Skeleton = NO_JOINTS,
) -> Dataset:
    """Lays out what was read; reports where there is nothing to learn."""
    if all(photo.is_ignored.all() for photo in photos):
        report(f"{annotations_path}: not one box: nothing can be learned from it")
    return Dataset(annotations_path, tuple(labels), tuple(label_ids), tuple(photos), skeleton)


def clip_box(
    box_xyxy: Sequence[float], width: int, height: int, what: str, hint: str, report: Report
) -> list[float] | None:
    """Returns the box within its picture; None where it is none, or outside, which is reported of `what`."""
    x0, y0, x1, y1 = box_xyxy
    if not np.isfinite(box_xyxy).all() or x1 <= x0 or y1 <= y0:
        report(f"{what} has no positive width and height")
        return None
    if x0 < -_SLACK or y0 < -_SLACK or x1 > width + _SLACK or y1 > height + _SLACK:
        report(f"{what} reaches outside its {width}x{height} picture: {hint}")
        return None
    return [max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)]


def check_joint(joint: Sequence[float], width: int, height: int) -> Sequence[float]:
    """Returns x, y and visibility with the place within its picture; raises `InvalidJoint`."""
    x, y, visibility = joint
    if visibility not in (ABSENT, HIDDEN, VISIBLE):
        raise InvalidJoint(f"has the visibility {visibility:g}, not 0 (no place), 1 (hidden) or 2 (visible)")
    if visibility == ABSENT:
        return (0.0, 0.0, ABSENT)
    if not -_SLACK <= x <= width + _SLACK or not -_SLACK <= y <= height + _SLACK:
        raise InvalidJoint(f"is at {x:g}, {y:g}, outside its {width}x{height} picture")
    return (min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height)), visibility)

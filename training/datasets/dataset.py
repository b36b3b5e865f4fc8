"""A checked data set, whatever format it came in."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.skeleton import NO_JOINTS, Skeleton

_SLACK = 1.0  # pixels that a box or a joint may stick out of its picture: annotators round
ABSENT, HIDDEN, VISIBLE = 0, 1, 2  # COCO's marks of a joint: it has no place, or one that may be seen or not
UNKNOWN = -1  # nobody annotated this object's joints

OnFault = Callable[[str], None]  # told of each fault; where it returns, the entry at fault is left out


class InvalidDataset(Exception):
    """The annotations cannot be trained on; the message names the file and the annotation."""


class InvalidJoint(Exception):
    """A joint has a mark of its own, or lies outside its picture."""


class Objects(NamedTuple):
    """The objects in a picture, in its pixels, in the order in which `model.codec.encode` takes them."""

    boxes_xyxy: NDArray[np.float32]  # (N, 4)
    labels: NDArray[np.int64]  # (N,)
    is_ignored: NDArray[np.bool_]  # (N,), what is neither an object to learn nor none
    keypoints: NDArray[np.float32]  # (N, J, 3), x and y and a visibility

    def select(self, kept: NDArray[np.bool_]) -> "Objects":
        """Those that are `kept` (N,), in arrays of their own."""
        return Objects._make(each[kept] for each in self)

    @staticmethod
    def concatenate(several: Sequence["Objects"]) -> "Objects":
        """The objects of all, in their order."""
        return Objects._make(np.concatenate(each) for each in zip(*several, strict=True))


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

    @property
    def objects(self) -> Objects:
        """The same arrays together, without the areas."""
        return Objects(self.boxes_xyxy, self.labels, self.is_ignored, self.keypoints)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled photos whose annotations have been checked; each label is an index into `labels`."""

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
    """One object as it was read, in pixels of its photo."""

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
    """A photo of what was read: its objects in arrays, areas where they are missing those of the boxes."""
    boxes = np.array([each.box_xyxy for each in objects], np.float32).reshape(-1, 4)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
    keypoints = np.zeros((len(objects), joint_count, 3), np.float32)
    for row, each in zip(keypoints, objects, strict=True):
        row[:] = (0, 0, ABSENT) if each.keypoints is None else each.keypoints
    areas = [box_area if each.area is None else each.area for each, box_area in zip(objects, box_areas, strict=True)]
    return Photo(
        id=photo_id,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=boxes,
        labels=np.array([each.label for each in objects], np.int64),
        is_ignored=np.array([each.is_ignored for each in objects], np.bool_),
        areas=np.array(areas, np.float32),
        keypoints=keypoints,
    )


def make_dataset(
    annotations_path: Path,
    labels: Sequence[str],
    label_ids: Sequence[int],
    photos: Sequence[Photo],
    on_fault: OnFault,
    skeleton: Skeleton = NO_JOINTS,
) -> Dataset:
    """The data set of what was read; `on_fault` is told where there is nothing to learn."""
    if all(photo.is_ignored.all() for photo in photos):
        on_fault(f"{annotations_path}: not one box: nothing can be learned from it")
    return Dataset(annotations_path, tuple(labels), tuple(label_ids), tuple(photos), skeleton)


def clip_box(
    box_xyxy: Sequence[float], width: int, height: int, what: str, hint: str, on_fault: OnFault
) -> list[float] | None:
    """Returns the box within its picture; None where it is none, or outside, of which `on_fault` is told."""
    x0, y0, x1, y1 = box_xyxy
    if not np.isfinite(box_xyxy).all() or x1 <= x0 or y1 <= y0:
        on_fault(f"{what} has no positive width and height")
        return None
    if x0 < -_SLACK or y0 < -_SLACK or x1 > width + _SLACK or y1 > height + _SLACK:
        on_fault(f"{what} reaches outside its {width}x{height} picture: {hint}")
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

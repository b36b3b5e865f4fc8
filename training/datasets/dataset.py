"""A validated object-detection data set, independent of its file format."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model import image
from model.errors import UserError
from model.skeleton import NO_JOINTS, Skeleton

_TOLERANCE = 1.0  # pixels by which a box or joint may exceed its image: annotators round
ABSENT, HIDDEN, VISIBLE = 0, 1, 2  # COCO's visibility flags: not labelled, labelled but occluded, visible
UNKNOWN = -1  # the joints of this object were not annotated

OnFault = Callable[[str], None]  # called with each fault; if it returns, the faulty entry is skipped


class InvalidDataset(UserError):
    """The data set is invalid; the message names the file and the annotation."""


class InvalidJoint(Exception):
    """A joint has an invalid visibility flag or lies outside its image."""


class Objects(NamedTuple):
    """The objects of an image in pixel coordinates, in the argument order of `model.network.codec.encode`."""

    boxes_xyxy: NDArray[np.float32]  # (N, 4)
    labels: NDArray[np.int64]  # (N,)
    is_ignored: NDArray[np.bool_]  # (N,), regions that count neither as object nor as background
    keypoints: NDArray[np.float32]  # (N, J, 3), x, y and visibility

    def select(self, kept: NDArray[np.bool_]) -> "Objects":
        """Returns copies of the objects where the mask `kept` (N,) is true."""
        return Objects._make(each[kept] for each in self)

    @staticmethod
    def concatenate(parts: Sequence["Objects"]) -> "Objects":
        """Concatenates the objects in order."""
        return Objects._make(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


@dataclasses.dataclass(frozen=True)
class Photo:
    """One annotated image.

    Objects marked `is_ignored`, such as crowds or VOC's difficult ones, are neither trained on nor counted in metrics,
    whether detected or not.
    """

    id: int
    path: Path
    width: int  # pixels
    height: int
    boxes_xyxy: NDArray[np.float32]  # (N, 4), pixels
    labels: NDArray[np.int64]  # (N,), index into `Dataset.labels`
    is_ignored: NDArray[np.bool_]  # (N,)
    areas: NDArray[np.float32]  # (N,), square pixels: of the object's mask if known, else of its box
    keypoints: NDArray[np.float32]  # (N, J, 3), x and y in pixels and COCO's visibility, or `UNKNOWN` for all joints

    @property
    def objects(self) -> Objects:
        """The object arrays as `Objects`, without the areas."""
        return Objects(self.boxes_xyxy, self.labels, self.is_ignored, self.keypoints)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Photos with validated annotations, whose labels are indices into `labels`."""

    annotations_path: Path
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]  # category ids of the file format, in the order of `labels`
    photos: tuple[Photo, ...]
    skeleton: Skeleton = NO_JOINTS

    @functools.cached_property
    def class_presence(self) -> NDArray[np.bool_]:
        """Whether each photo shows each class, ignored objects excluded: (photos, labels)."""
        presence = np.zeros((len(self.photos), len(self.labels)), np.bool_)
        for row, photo in zip(presence, self.photos, strict=True):
            row[photo.labels[~photo.is_ignored]] = True
        return presence

    @functools.cached_property
    def labels_with_keypoints(self) -> set[int]:
        """The classes with an annotated keypoint, ignored objects excluded."""
        return {
            label
            for photo in self.photos
            for label in photo.labels[~photo.is_ignored & (photo.keypoints[..., 2] > 0).any(1)].tolist()
        }


@dataclasses.dataclass(frozen=True)
class Object:
    """One annotated object as read from a file, in pixels."""

    box_xyxy: Sequence[float]
    label: int
    is_ignored: bool = False
    area: float | None = None
    keypoints: Sequence[Sequence[float]] | None = None  # x, y and visibility of each joint, if any


def raise_fault(fault: str) -> None:
    """Raises `InvalidDataset` at the first fault."""
    raise InvalidDataset(fault)


def read_size(path: Path, where: str, on_fault: OnFault) -> tuple[int, int] | None:
    """Reads a photo's width and height, in pixels, from its header; reports a fault and returns None if it cannot."""
    try:
        header = image.read_header(path.read_bytes())
    except OSError:
        on_fault(f"{where}: no file {path}")
        return None
    except image.InvalidImage as error:
        on_fault(f"{path}: {error}")
        return None
    return header.width, header.height


def check_size(path: Path, size: tuple[int, int], annotated: tuple[int, int], on_fault: OnFault) -> bool:
    """Returns whether a photo has the annotated width and height, in pixels; reports a fault if not."""
    if size != annotated:
        on_fault(
            f"{path}: is {size[0]}x{size[1]} pixels after its EXIF orientation is applied;"
            f" the annotations say {annotated[0]}x{annotated[1]}"
        )
    return size == annotated


def make_photo(
    photo_id: int, path: Path, width: int, height: int, objects: Sequence[Object], joint_count: int = 0
) -> Photo:
    """Builds a `Photo` from the objects read; missing areas default to the boxes' areas."""
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
    hint: str = "",
) -> Dataset:
    """Builds a `Dataset`; reports a fault, with `hint`, if it has no boxes to train on, and for repeated photos."""
    for path, count in Counter(photo.path for photo in photos).items():
        if count > 1:
            on_fault(f"{annotations_path}: {count} entries have the same photo {path}")
    if all(photo.is_ignored.all() for photo in photos):
        on_fault(f"{annotations_path}: no boxes to train on{hint}")
    return Dataset(annotations_path, tuple(labels), tuple(label_ids), tuple(photos), skeleton)


def clip_box(
    box_xyxy: Sequence[float], width: int, height: int, what: str, hint: str, on_fault: OnFault
) -> list[float] | None:
    """Clips a box to its image; reports a fault and returns None if it is empty or too far outside."""
    x0, y0, x1, y1 = box_xyxy
    if x0 < -_TOLERANCE or y0 < -_TOLERANCE or x1 > width + _TOLERANCE or y1 > height + _TOLERANCE:
        on_fault(f"{what} reaches outside its {width}x{height} image: {hint}")
        return None
    left, top, right, bottom = max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
    if not np.isfinite(box_xyxy).all() or right <= left or bottom <= top:
        on_fault(f"{what} has no positive width and height in its {width}x{height} image")
        return None
    return [left, top, right, bottom]


def check_joint(joint: Sequence[float], width: int, height: int) -> Sequence[float]:
    """Returns x, y and visibility, clipped to the image; raises `InvalidJoint`."""
    x, y, visibility = joint
    if visibility not in (ABSENT, HIDDEN, VISIBLE):
        raise InvalidJoint(f"has the visibility {visibility:g}, not 0 (not labelled), 1 (occluded) or 2 (visible)")
    if visibility == ABSENT:
        return (0.0, 0.0, ABSENT)
    if not -_TOLERANCE <= x <= width + _TOLERANCE or not -_TOLERANCE <= y <= height + _TOLERANCE:
        raise InvalidJoint(f"is at {x:g}, {y:g}, outside its {width}x{height} image")
    return (min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height)), visibility)

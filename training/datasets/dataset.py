"""A checked data set, whatever format it came in."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SLACK = 1.0  # pixels that a box may stick out of its picture: annotators round

Report = Callable[[str], None]  # told of each fault; where it returns, the entry at fault is left out


class InvalidDataset(Exception):
    """The annotations cannot be trained on; the message names the file and the annotation."""


class InvalidBox(Exception):
    """A box has no size, or lies outside its picture."""


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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is in here can be trained on."""

    annotations_path: Path
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]  # the format's category ids, in the order of `labels`
    photos: tuple[Photo, ...]


@dataclasses.dataclass(frozen=True)
class Object:
    """One annotation that has been read."""

    box_xyxy: Sequence[float]
    label: int
    is_ignored: bool = False
    area: float | None = None


def raise_fault(fault: str) -> None:
    """Raises `InvalidDataset` at the first fault."""
    raise InvalidDataset(fault)


def make_photo(photo_id: int, path: Path, width: int, height: int, objects: Sequence[Object]) -> Photo:
    """Lays out what was read."""
    boxes = np.array([each.box_xyxy for each in objects], np.float32).reshape(-1, 4)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
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
    )


def make_dataset(
    annotations_path: Path, labels: Sequence[str], label_ids: Sequence[int], photos: Sequence[Photo], report: Report
) -> Dataset:
    """Lays out what was read; reports where there is nothing to learn."""
    if all(photo.is_ignored.all() for photo in photos):
        report(f"{annotations_path}: not one box: nothing can be learned from it")
    return Dataset(annotations_path, tuple(labels), tuple(label_ids), tuple(photos))


def clip_box(box_xyxy: Sequence[float], width: int, height: int, hint: str) -> list[float]:
    """Returns the box within its picture; raises `InvalidBox` where it is none, or with `hint` where it is outside."""
    x0, y0, x1, y1 = box_xyxy
    if not np.isfinite(box_xyxy).all() or x1 <= x0 or y1 <= y0:
        raise InvalidBox("has no positive width and height")
    if x0 < -_SLACK or y0 < -_SLACK or x1 > width + _SLACK or y1 > height + _SLACK:
        raise InvalidBox(f"reaches outside its {width}x{height} picture: {hint}")
    return [max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)]

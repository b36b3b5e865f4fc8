"""Reads and checks a COCO-format data set."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SLACK = 1.0  # pixels that a box may stick out of its picture: annotators round


class InvalidDataset(Exception):
    """The annotations cannot be trained on; the message names the file and the annotation."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """One picture and its objects."""

    id: int
    path: Path
    width: int  # pixels
    height: int
    boxes_xyxy: NDArray[np.float32]  # (N, 4), pixels
    labels: NDArray[np.int64]  # (N,), index into `Dataset.labels`


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A checked data set: what is in here can be trained on."""

    annotations_path: Path
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]  # the file's category ids, in the order of `labels`
    photos: tuple[Photo, ...]


def load_coco(annotations_path: Path, images_folder: Path) -> Dataset:
    """Reads `annotations_path`, whose file names are relative to `images_folder`.

    Crowd regions (`iscrowd`) are no objects and are left out of the boxes. Raises `InvalidDataset` at the first fault.
    """
    try:
        content = json.loads(annotations_path.read_text())
    except FileNotFoundError:
        raise InvalidDataset(f"{annotations_path}: no such annotation file") from None
    except ValueError as error:
        raise InvalidDataset(f"{annotations_path}: not valid JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InvalidDataset(f"{annotations_path}: has no list named {key!r}: is it in COCO format?")
    try:
        return _parse(content, annotations_path, images_folder)
    except KeyError as error:
        raise InvalidDataset(f"{annotations_path}: an entry has no {error}") from error


def _parse(content: dict[str, Any], path: Path, images_folder: Path) -> Dataset:
    categories = sorted(content["categories"], key=lambda c: int(c["id"]))
    label_of_id = {c["id"]: index for index, c in enumerate(categories)}
    if len(label_of_id) != len(categories) or not categories:
        raise InvalidDataset(f"{path}: the categories are empty or share an id")

    images = {image["id"]: image for image in content["images"]}
    objects: dict[int, list[tuple[list[float], int]]] = defaultdict(list)
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        image = images.get(annotation["image_id"])
        if image is None:
            raise InvalidDataset(f"{where}: there is no image {annotation['image_id']}")
        if annotation["category_id"] not in label_of_id:
            raise InvalidDataset(f"{where}: unknown category {annotation['category_id']}")
        box = _box_xyxy(annotation["bbox"], image["width"], image["height"], where)
        if not annotation.get("iscrowd", 0):
            objects[image["id"]].append((box, label_of_id[annotation["category_id"]]))
    if not objects:
        raise InvalidDataset(f"{path}: not one box: nothing can be learned from it")

    photos = []
    for image in images.values():
        photo_path = images_folder / image["file_name"]
        if not photo_path.is_file():
            raise InvalidDataset(f"{path}: image {image['id']}: no file {photo_path}")
        boxes = np.array([box for box, _ in objects[image["id"]]], np.float32).reshape(-1, 4)
        labels = np.array([label for _, label in objects[image["id"]]], np.int64)
        photos.append(Photo(image["id"], photo_path, image["width"], image["height"], boxes, labels))
    names = tuple(str(c["name"]) for c in categories)
    return Dataset(path, names, tuple(int(c["id"]) for c in categories), tuple(photos))


def _box_xyxy(box: Any, width: int, height: int, where: str) -> list[float]:
    """Checks COCO's `[x, y, width, height]` against its picture and returns it as xyxy, clipped."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise InvalidDataset(f"{where}: bbox {box!r} is not [x, y, width, height]")
    x, y, w, h = box
    if not np.isfinite(box).all() or w <= 0 or h <= 0:
        raise InvalidDataset(f"{where}: bbox {box} has no positive width and height")
    if x < -_SLACK or y < -_SLACK or x + w > width + _SLACK or y + h > height + _SLACK:
        raise InvalidDataset(
            f"{where}: bbox {box} reaches outside its {width}x{height} picture: it must be [x, y, width, height]"
            " in pixels, not corners and not fractions"
        )
    return [max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)]

"""Reads COCO JSON (Lin et al., arXiv 1405.0312; cocodataset.org/#format-data)."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, PositiveInt, StrictInt, ValidationError

from model.skeleton import Skeleton
from training.datasets.dataset import (
    UNKNOWN,
    Dataset,
    InvalidDataset,
    InvalidJoint,
    Object,
    OnFault,
    check_joint,
    check_size,
    clip_box,
    make_dataset,
    make_photo,
    raise_fault,
    read_size,
)

Entry = TypeVar("Entry", bound=BaseModel)

_MAX_AREA = 2.0  # of a mask, relative to its box, which is rounded


class _Image(BaseModel):
    id: StrictInt
    file_name: str
    width: PositiveInt
    height: PositiveInt


class _Category(BaseModel, coerce_numbers_to_str=True):
    id: StrictInt
    name: str
    keypoints: tuple[str, ...] | None = None
    skeleton: tuple[tuple[int, int], ...] | None = None


class _Annotation(BaseModel):
    id: Any = None
    image_id: StrictInt
    category_id: StrictInt
    bbox: Any = None
    area: float | None = None
    iscrowd: bool = False
    keypoints: Any = None
    num_keypoints: int | None = None


def load_coco(annotations_path: Path, images_folder: Path, on_fault: OnFault = raise_fault) -> Dataset:
    """Reads `annotations_path`, whose file names are relative to `images_folder`; `iscrowd` regions are ignored.

    All categories with keypoints must have the same ones. Raises `InvalidDataset` if the file is not in COCO format.
    """
    path = annotations_path
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidDataset(f"{path}: not valid JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InvalidDataset(f"{path}: has no list {key!r}: is it in COCO format?")

    categories = sorted(_read_entries(_Category, content, "categories", path, raise_fault), key=lambda each: each.id)
    label_of_id = {category.id: index for index, category in enumerate(categories)}
    if not len(label_of_id) == len({category.name for category in categories}) == len(categories) > 0:
        raise InvalidDataset(f"{path}: the categories are empty or share an id or a name")
    skeleton = _read_skeleton(categories, path)

    images: dict[int, _Image] = {}
    for image in _read_entries(_Image, content, "images", path, on_fault):
        if image.id in images:
            on_fault(f"{path}: image {image.id}: both {images[image.id].file_name} and {image.file_name} have this id")
        else:
            images[image.id] = image

    objects: dict[int, list[Object]] = defaultdict(list)
    for annotation in _read_entries(_Annotation, content, "annotations", path, on_fault):
        where = f"{path}: annotation {annotation.id}"
        if annotation.image_id not in images:
            on_fault(f"{where}: there is no image {annotation.image_id}")
        elif annotation.category_id not in label_of_id:
            on_fault(f"{where}: unknown category {annotation.category_id}")
        else:
            label, image = label_of_id[annotation.category_id], images[annotation.image_id]
            if box := _read_box(annotation, image, where, on_fault):
                keypoints = None
                if categories[label].keypoints:
                    keypoints = _read_keypoints(annotation, skeleton, image.width, image.height, where, on_fault)
                area = _read_area(annotation, box, where, on_fault)
                objects[image.id].append(Object(box, label, annotation.iscrowd, area, keypoints))

    photos = []
    for image in images.values():
        photo_path, annotated = images_folder / image.file_name, (image.width, image.height)
        size = read_size(photo_path, f"{path}: image {image.id}", on_fault)
        if size and check_size(photo_path, size, annotated, on_fault):
            photos.append(make_photo(image.id, photo_path, *size, objects[image.id], len(skeleton.joints)))
    labels, label_ids = [category.name for category in categories], list(label_of_id)
    return make_dataset(path, labels, label_ids, photos, on_fault, skeleton)


def _read_entries(
    kind: type[Entry], content: dict[str, list[Any]], key: str, path: Path, on_fault: OnFault
) -> Iterator[Entry]:
    for index, entry in enumerate(content[key]):
        try:
            yield kind.model_validate(entry)
        except ValidationError as error:
            fault = error.errors()[0]
            on_fault(f"{path}: {key}[{index}]: {'.'.join(map(str, fault['loc']))}: {fault['msg']}")


def _read_skeleton(categories: Sequence[_Category], path: Path) -> Skeleton:
    skeletons = {
        Skeleton(each.keypoints, tuple((one - 1, other - 1) for one, other in each.skeleton or ()))
        for each in categories
        if each.keypoints
    }
    if len({skeleton.joints for skeleton in skeletons}) > 1:
        raise InvalidDataset(
            f"{path}: the categories have different keypoints: train one model for each set of keypoints"
        )
    skeleton = max(skeletons, key=lambda each: len(each.edges), default=Skeleton())
    if len(set(skeleton.joints)) < len(skeleton.joints):
        raise InvalidDataset(f"{path}: a category has duplicate keypoints")
    if not all(0 <= end < len(skeleton.joints) for edge in skeleton.edges for end in edge):
        raise InvalidDataset(
            f"{path}: a category's skeleton refers to a keypoint that does not exist: keypoints count from 1"
        )
    return skeleton


def _read_keypoints(
    annotation: _Annotation, skeleton: Skeleton, width: int, height: int, where: str, on_fault: OnFault
) -> list[Sequence[float]]:
    """Returns x, y and visibility of each joint; all `UNKNOWN` if they are missing or invalid."""
    unknown: list[Sequence[float]] = [(0.0, 0.0, UNKNOWN)] * len(skeleton.joints)
    values = annotation.keypoints
    if not values or annotation.num_keypoints == 0:
        return unknown
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        on_fault(f"{where}: keypoints are not a list of numbers")
        return unknown
    if len(values) != 3 * len(skeleton.joints):
        on_fault(
            f"{where}: keypoints are {len(values)} numbers, not 3 (x, y, visibility)"
            f" for each of {len(skeleton.joints)} keypoints"
        )
        return unknown
    keypoints = []
    for joint, start in zip(skeleton.joints, range(0, len(values), 3), strict=True):
        try:
            keypoints.append(check_joint(values[start : start + 3], width, height))
        except InvalidJoint as fault:
            on_fault(f"{where}: the keypoint {joint!r} {fault}")
            return unknown
    return keypoints


def _read_box(annotation: _Annotation, image: _Image, where: str, on_fault: OnFault) -> list[float] | None:
    """Returns the bbox `[x, y, width, height]` as xyxy, clipped to the image; None if it is invalid."""
    box = annotation.bbox
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        on_fault(f"{where}: bbox {box!r} is not [x, y, width, height]")
        return None
    x, y, w, h = box
    if annotation.area == 0 and 0 in (w, h):  # empty and marked so, as two annotations in COCO itself
        return None
    hint = "it must be [x, y, width, height] in pixels, not corners and not fractions"
    return clip_box([x, y, x + w, y + h], image.width, image.height, f"{where}: bbox {box}", hint, on_fault)


def _read_area(annotation: _Annotation, box_xyxy: Sequence[float], where: str, on_fault: OnFault) -> float | None:
    """Returns the area in square pixels; None, for that of the box, if it is missing, below a pixel or invalid."""
    area = annotation.area
    if area is None or 0 <= area < 1:
        return None
    x0, y0, x1, y1 = box_xyxy
    if not 0 < area <= _MAX_AREA * (x1 - x0 + 1) * (y1 - y0 + 1):
        on_fault(f"{where}: area {area:g} is not that of an object in its box: without `area` the box's is used")
        return None
    return area

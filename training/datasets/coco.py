"""Reads COCO's JSON (Lin et al., arXiv 1405.0312; cocodataset.org/#format-data)."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.skeleton import Skeleton
from training.datasets.dataset import (
    UNKNOWN,
    Dataset,
    InvalidBox,
    InvalidDataset,
    InvalidJoint,
    Object,
    Report,
    check_joint,
    clip_box,
    make_dataset,
    make_photo,
    raise_fault,
)


def load_coco(annotations_path: Path, images_folder: Path, report: Report = raise_fault) -> Dataset:
    """Reads `annotations_path`, whose file names are relative to `images_folder`; `iscrowd` regions are ignored.

    The joints are those that its categories name; all that name some must name the same. Raises `InvalidDataset` where
    the file is of another format.
    """
    try:
        content = json.loads(annotations_path.read_text())
    except ValueError as error:
        raise InvalidDataset(f"{annotations_path}: not valid JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InvalidDataset(f"{annotations_path}: has no list named {key!r}: is it in COCO format?")
    try:
        return _parse(content, annotations_path, images_folder, report)
    except KeyError as error:
        raise InvalidDataset(f"{annotations_path}: an entry has no {error}") from error


def _parse(content: dict[str, Any], path: Path, images_folder: Path, report: Report) -> Dataset:
    categories = sorted(content["categories"], key=lambda c: int(c["id"]))
    label_of_id = {c["id"]: index for index, c in enumerate(categories)}
    if len(label_of_id) != len(categories) or not categories:
        raise InvalidDataset(f"{path}: the categories are empty or share an id")

    skeleton = _read_skeleton(categories, path)
    has_joints = {c["id"]: bool(c.get("keypoints")) for c in categories}

    images = {image["id"]: image for image in content["images"]}
    objects: dict[int, list[Object]] = defaultdict(list)
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        image = images.get(annotation["image_id"])
        if image is None:
            report(f"{where}: there is no image {annotation['image_id']}")
        elif annotation["category_id"] not in label_of_id:
            report(f"{where}: unknown category {annotation['category_id']}")
        elif box := _read_box(annotation["bbox"], image["width"], image["height"], where, report):
            label = label_of_id[annotation["category_id"]]
            is_crowd = bool(annotation.get("iscrowd", 0))
            keypoints = None
            if has_joints[annotation["category_id"]]:
                keypoints = _read_keypoints(annotation, skeleton, image["width"], image["height"], where, report)
            objects[image["id"]].append(Object(box, label, is_crowd, annotation.get("area"), keypoints))

    photos = []
    for image in images.values():
        photo_path = images_folder / image["file_name"]
        if photo_path.is_file():
            size = (image["width"], image["height"])
            photos.append(make_photo(image["id"], photo_path, *size, objects[image["id"]], len(skeleton.joints)))
        else:
            report(f"{path}: image {image['id']}: no file {photo_path}")
    labels, label_ids = [str(c["name"]) for c in categories], [int(c["id"]) for c in categories]
    return make_dataset(path, labels, label_ids, photos, report, skeleton)


def _read_skeleton(categories: list[dict[str, Any]], path: Path) -> Skeleton:
    skeletons = {
        Skeleton(tuple(map(str, c["keypoints"])), tuple((one - 1, other - 1) for one, other in c.get("skeleton", ())))
        for c in categories
        if c.get("keypoints")
    }
    if len({skeleton.joints for skeleton in skeletons}) > 1:
        raise InvalidDataset(f"{path}: its categories name different keypoints: train one model for each such set")
    skeleton = max(skeletons, key=lambda each: len(each.edges), default=Skeleton())
    if len(set(skeleton.joints)) < len(skeleton.joints):
        raise InvalidDataset(f"{path}: a category names a keypoint twice")
    if not all(0 <= end < len(skeleton.joints) for edge in skeleton.edges for end in edge):
        raise InvalidDataset(f"{path}: a category's skeleton connects what is no keypoint: they count from 1")
    return skeleton


def _read_keypoints(
    annotation: dict[str, Any], skeleton: Skeleton, width: int, height: int, where: str, report: Report
) -> list[Sequence[float]]:
    """Returns x, y and visibility of each joint; `UNKNOWN` where there are none, or none that can be read."""
    unknown: list[Sequence[float]] = [(0.0, 0.0, UNKNOWN)] * len(skeleton.joints)
    values = annotation.get("keypoints")
    if not values or not annotation.get("num_keypoints", 1):
        return unknown
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        report(f"{where}: keypoints are not a list of numbers")
        return unknown
    if len(values) != 3 * len(skeleton.joints):
        report(
            f"{where}: keypoints are {len(values)} numbers, not 3 (x, y, visibility)"
            f" for each of {len(skeleton.joints)} joints"
        )
        return unknown
    keypoints = []
    for joint, start in zip(skeleton.joints, range(0, len(values), 3), strict=True):
        try:
            keypoints.append(check_joint(values[start : start + 3], width, height))
        except InvalidJoint as fault:
            report(f"{where}: the joint {joint!r} {fault}")
            return unknown
    return keypoints


def _read_box(box: Any, width: int, height: int, where: str, report: Report) -> list[float] | None:
    """Checks `[x, y, width, height]` and returns it as xyxy, clipped to the picture."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        report(f"{where}: bbox {box!r} is not [x, y, width, height]")
        return None
    x, y, w, h = box
    try:
        hint = "it must be [x, y, width, height] in pixels, not corners and not fractions"
        return clip_box([x, y, x + w, y + h], width, height, hint)
    except InvalidBox as fault:
        report(f"{where}: bbox {box} {fault}")
        return None

"""Reads COCO's JSON (Lin et al., arXiv 1405.0312; cocodataset.org/#format-data)."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from training.datasets.dataset import (
    Dataset,
    InvalidBox,
    InvalidDataset,
    Object,
    Report,
    clip_box,
    make_dataset,
    make_photo,
    raise_fault,
)


def load_coco(annotations_path: Path, images_folder: Path, report: Report = raise_fault) -> Dataset:
    """Reads `annotations_path`, whose file names are relative to `images_folder`; `iscrowd` regions are ignored.

    Raises `InvalidDataset` where the file is of another format.
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
            objects[image["id"]].append(Object(box, label, is_crowd, annotation.get("area")))

    photos = []
    for image in images.values():
        photo_path = images_folder / image["file_name"]
        if photo_path.is_file():
            photos.append(make_photo(image["id"], photo_path, image["width"], image["height"], objects[image["id"]]))
        else:
            report(f"{path}: image {image['id']}: no file {photo_path}")
    return make_dataset(path, [str(c["name"]) for c in categories], [int(c["id"]) for c in categories], photos, report)


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

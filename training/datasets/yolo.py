"""Reads YOLO folders: `data.yaml` with class names, and a label file per photo (docs.ultralytics.com/datasets)."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from model import image
from training.datasets.dataset import (
    Dataset,
    InvalidDataset,
    Object,
    OnFault,
    Photo,
    clip_box,
    make_dataset,
    make_photo,
    raise_fault,
    read_size,
)

_LABEL_LINE = re.compile(r"\s*[\d.]+([ \t]+[-+.\de]+){4}")  # unlike class names or a list of photos


def load_yolo(names_path: Path, images_folder: Path, on_fault: OnFault = raise_fault) -> Dataset:
    """Reads all photos below `images_folder`, with the class names of `names_path`.

    A photo's label file has the suffix `.txt`, and `labels` in place of the last `images` folder of its path, if any; a
    photo without a label file has no objects, and labels without a photo are a fault. Raises `InvalidDataset` if the
    class names cannot be read.
    """
    labels, joint_values = _read_names(names_path)
    if not images_folder.is_dir():
        raise InvalidDataset(f"{images_folder}: no such folder of photos")
    files = sorted(images_folder.rglob("*"))
    paths = [each for each in files if each.suffix.lower() in image.SUFFIXES]
    photos: list[Photo] = []
    for path in paths:
        if size := read_size(path, str(names_path), on_fault):
            objects = _read_objects(_find_label_file(path), labels, joint_values, *size, on_fault)
            photos.append(make_photo(len(photos) + 1, path, *size, objects))
    for path in _find_unused_labels(files, paths):
        on_fault(
            f"{path}: no photo for these labels: photo and labels need the same name, the labels the suffix .txt,"
            f" and the photo one of {' '.join(sorted(image.SUFFIXES))}"
        )
    hint = f": the labels of {paths[0]} would be in {_find_label_file(paths[0])}" if paths else ": there are no photos"
    return make_dataset(names_path, labels, range(len(labels)), photos, on_fault, hint=hint)


def _read_names(path: Path) -> tuple[list[str], int]:
    """Returns the class names, and how many keypoint numbers follow each box in a pose data set."""
    try:
        content = yaml.load(path.read_bytes(), yaml.BaseLoader)  # all text: the class `no` is not False
    except yaml.YAMLError as error:
        raise InvalidDataset(f"{path}: not valid YAML: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and names.keys() == set(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise InvalidDataset(
            f"{path}: `names` must be a list of distinct classes, or a table of them that counts from 0"
        )
    joints = content.get("kpt_shape", ["0"])
    if not isinstance(joints, list) or not all(str(each).isdecimal() for each in joints):
        raise InvalidDataset(f"{path}: `kpt_shape` must be [keypoints, numbers per keypoint]")
    return [str(name) for name in names], math.prod(map(int, joints))


def _find_label_file(photo: Path) -> Path:
    parts = list(photo.with_suffix(".txt").parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts)


def _find_unused_labels(files: Sequence[Path], photos: Sequence[Path]) -> list[Path]:
    """Returns the label files that no photo uses, in the folders where the labels of `files` would be."""
    folders = {_find_label_file(file).parent for file in files}
    found = {path for folder in folders for path in folder.glob("*") if path.suffix.lower() == ".txt"}
    unused = sorted(found - {_find_label_file(photo) for photo in photos})
    return [path for path in unused if _LABEL_LINE.match(path.read_text(errors="replace"))]


def _read_objects(
    path: Path, labels: list[str], joint_values: int, width: int, height: int, on_fault: OnFault
) -> list[Object]:
    if not path.is_file():
        return []
    objects = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            label, *values = (float(value) for value in line.split())
        except ValueError:
            on_fault(f"{where}: {line!r} is not `class x y width height`")
            continue
        if label not in range(len(labels)):
            on_fault(f"{where}: there is no class {label:g}: the classes are 0 to {len(labels) - 1}")
            continue
        if len(values) == 4 + joint_values:  # keypoints are not read
            x, y, w, h = values[:4]
            fractions = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        elif not joint_values and len(values) >= 6 and len(values) % 2 == 0:  # a polygon, for segmentation
            fractions = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
        else:
            rest = f" and the {joint_values} numbers of `kpt_shape`" if joint_values else ""
            on_fault(f"{where}: {line!r} is not `class x y width height`{rest}")
            continue
        pixels = [value * side for value, side in zip(fractions, (width, height) * 2, strict=True)]
        hint = "it must be the centre x and y, width and height, as fractions from 0 to 1"
        if box := clip_box(pixels, width, height, f"{where}: box {values[:4]}", hint, on_fault):
            objects.append(Object(box, int(label)))
    return objects

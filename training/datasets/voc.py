"""Reads Pascal VOC folders (Everingham et al., IJCV 2010; the development kit's section 5)."""

import xml.etree.ElementTree as ET
from pathlib import Path

from training.datasets.dataset import (
    Dataset,
    InvalidDataset,
    Object,
    OnFault,
    Photo,
    check_size,
    clip_box,
    make_dataset,
    make_photo,
    raise_fault,
    read_size,
)


def load_voc(split_path: Path, images_folder: Path, on_fault: OnFault = raise_fault) -> Dataset:
    """Reads the photos listed in `ImageSets/Main/<split>.txt`, one a line, with `Annotations/<name>.xml` for each.

    The labels are the sorted names in all of `Annotations`, so that all splits agree. Objects marked `difficult` are
    ignored. Raises `InvalidDataset` if the folder is not in VOC format.
    """
    annotations = split_path.parents[2] / "Annotations" if len(split_path.parents) > 2 else Path("Annotations")
    if not annotations.is_dir():
        raise InvalidDataset(
            f"{split_path}: there is no folder {annotations}: a VOC split is <folder>/ImageSets/Main/<split>.txt"
        )
    files = sorted(annotations.glob("*.xml"))
    roots = {path.stem: root for path in files if (root := _parse(path, on_fault)) is not None}
    names = {each.findtext("name", "").strip() for root in roots.values() for each in root.iter("object")}
    labels = sorted(names - {""})

    photos: list[Photo] = []
    for number, line in enumerate(split_path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name = line.split()[0]  # per-class lists append a flag
        where = f"{split_path}:{number}"
        if name not in roots:
            on_fault(f"{where}: there is no readable {annotations / name}.xml")
            continue
        root, path = roots[name], annotations / f"{name}.xml"
        photo_path = images_folder / root.findtext("filename", f"{name}.jpg")
        try:
            width, height = int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
        except ValueError:
            on_fault(f"{path}: size/width and size/height are not whole numbers")
            continue
        size = read_size(photo_path, str(path), on_fault)
        if not size or not check_size(photo_path, size, (width, height), on_fault):
            continue
        objects = [
            found
            for index, each in enumerate(root.iter("object"), start=1)
            if (found := _read_object(each, labels, width, height, f"{path}: object {index}", on_fault))
        ]
        photos.append(make_photo(len(photos) + 1, photo_path, width, height, objects))
    return make_dataset(split_path, labels, range(1, len(labels) + 1), photos, on_fault)


def _parse(path: Path, on_fault: OnFault) -> ET.Element | None:
    try:
        return ET.parse(path).getroot()
    except ET.ParseError as error:
        on_fault(f"{path}: not valid XML: {error}")
        return None


def _read_object(
    element: ET.Element, labels: list[str], width: int, height: int, where: str, on_fault: OnFault
) -> Object | None:
    name = element.findtext("name", "").strip()
    if not name:
        on_fault(f"{where}: has no name")
        return None
    try:
        x_min, y_min, x_max, y_max = (
            float(element.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        on_fault(f"{where}: bndbox/xmin, ymin, xmax and ymax are not numbers")
        return None
    # VOC coordinates count from 1, and the maximum is inclusive
    pixels, what = [x_min - 1, y_min - 1, x_max, y_max], f"{where}: bndbox {[x_min, y_min, x_max, y_max]}"
    box = clip_box(pixels, width, height, what, "it must be in pixels, counted from 1", on_fault)
    return Object(box, labels.index(name), element.findtext("difficult", "0").strip() == "1") if box else None

"""Loads a data set, choosing the format by the annotation file's suffix."""

from pathlib import Path

from training.datasets.coco import load_coco
from training.datasets.dataset import Dataset, InvalidDataset, OnFault, raise_fault
from training.datasets.voc import load_voc
from training.datasets.yolo import load_yolo


def load_dataset(annotations_path: Path, images_folder: Path, on_fault: OnFault = raise_fault) -> Dataset:
    """Reads a COCO `.json`, the `.txt` of a Pascal VOC split, or a YOLO `data.yaml`.

    `on_fault` is called with each fault; by default the first one raises `InvalidDataset`. Raises `InvalidDataset` in
    any case if the file cannot be read at all.
    """
    if not annotations_path.is_file():
        raise InvalidDataset(f"{annotations_path}: no such annotation file")
    match annotations_path.suffix.lower():
        case ".json":
            return load_coco(annotations_path, images_folder, on_fault)
        case ".txt":
            return load_voc(annotations_path, images_folder, on_fault)
        case ".yaml" | ".yml":
            return load_yolo(annotations_path, images_folder, on_fault)
    raise InvalidDataset(
        f"{annotations_path}: give a COCO .json, the .txt of a Pascal VOC split (ImageSets/Main/train.txt),"
        " or a YOLO data.yaml"
    )

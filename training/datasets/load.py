"""One door for all formats: a path decides."""

from pathlib import Path

from training.datasets.coco import load_coco
from training.datasets.dataset import Dataset, InvalidDataset, OnFault, raise_fault
from training.datasets.voc import load_voc
from training.datasets.yolo import load_yolo


def load_dataset(annotations_path: Path, images_folder: Path, on_fault: OnFault = raise_fault) -> Dataset:
    """Reads COCO's `.json`, the `.txt` of a split of Pascal VOC, or the `.yaml` that names YOLO's classes.

    `on_fault` is told of each fault, by default by raising `InvalidDataset` at the first; that is raised in any case
    where nothing can be read.
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
        f"{annotations_path}: name COCO's .json, the .txt of a split of Pascal VOC (ImageSets/Main/train.txt),"
        " or YOLO's data.yaml"
    )

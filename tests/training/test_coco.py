import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from training.coco import InvalidDataset, load_coco

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 5, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 9, "file_name": "b.png", "width": 20, "height": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 12, "bbox": [10, 5, 20, 10.5]},
        {"id": 2, "image_id": 5, "category_id": 3, "bbox": [0, 0, 40.4, 30], "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
    "categories": [{"id": 12, "name": "dog"}, {"id": 3, "name": "cat"}],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    for image in CONTENT["images"]:
        cv2.imwrite(str(tmp_path / image["file_name"]), np.zeros((image["height"], image["width"], 3), np.uint8))

    def write_annotations(content: Any) -> Path:
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(content))
        return path

    return write_annotations


def test_boxes_become_corners_and_categories_labels_in_the_order_of_their_ids(write: Callable[[Any], Path]) -> None:
    path = write(CONTENT)
    dataset = load_coco(path, path.parent)
    assert dataset.labels == ("cat", "dog")
    assert dataset.label_ids == (3, 12)
    assert [photo.id for photo in dataset.photos] == [5, 9]
    assert dataset.photos[0].boxes_xyxy.tolist() == [[10, 5, 30, 15.5], [0, 0, 40, 30]]
    assert dataset.photos[0].labels.tolist() == [1, 0]


def test_crowd_regions_are_no_objects(write: Callable[[Any], Path]) -> None:
    path = write(CONTENT)
    assert load_coco(path, path.parent).photos[1].boxes_xyxy.shape == (0, 4)


def change(key: str, index: int, **changes: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content[key][index] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            change("annotations", 0, bbox=[10, 5, 30]),
            "annotation 1: bbox .* is not .x, y, width, height",
        ),
        (change("annotations", 0, bbox=[10, 5, 0, 4]), "annotation 1: .* no positive width and height"),
        (change("annotations", 1, bbox=[10, 5, 35, 30]), "annotation 2: .* outside its 40x30 picture"),
        (change("annotations", 1, bbox=[-3, 5, 5, 5]), "annotation 2: .* outside"),
        (change("annotations", 0, bbox=[1, 1, float("nan"), 5]), "annotation 1: .* no positive"),
        (change("annotations", 0, category_id=4), "annotation 1: unknown category 4"),
        (change("annotations", 2, image_id=4), "annotation 3: there is no image 4"),
        (change("images", 1, file_name="c.png"), "image 9: no file .*c.png"),
        (change("categories", 0, id=3), "share an id"),
        (CONTENT | {"annotations": []}, "not one box"),
        (CONTENT | {"images": {}}, "no list named 'images'"),
        ({"images": [{}], "annotations": [], "categories": []}, "categories are empty"),
        ([], "COCO format"),
    ],
)
def test_each_fault_is_named_with_its_annotation(write: Callable[[Any], Path], content: Any, message: str) -> None:
    path = write(content)
    with pytest.raises(InvalidDataset, match=message):
        load_coco(path, path.parent)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"none\.json: no such annotation file"):
        load_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InvalidDataset, match=r"half\.json: not valid JSON"):
        load_coco(tmp_path / "half.json", tmp_path)

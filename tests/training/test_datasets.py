import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from model.skeleton import Skeleton
from training.datasets.dataset import InvalidDataset
from training.datasets.load import load_dataset

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


def test_boxes_become_corners_and_labels_follow_the_order_of_category_ids(write: Callable[[Any], Path]) -> None:
    path = write(CONTENT)
    dataset = load_dataset(path, path.parent)
    assert dataset.labels == ("cat", "dog")
    assert dataset.label_ids == (3, 12)
    assert [photo.id for photo in dataset.photos] == [5, 9]
    assert dataset.photos[0].boxes_xyxy.tolist() == [[10, 5, 30, 15.5], [0, 0, 40, 30]]
    assert dataset.photos[0].labels.tolist() == [1, 0]


def test_crowd_regions_are_ignored(write: Callable[[Any], Path]) -> None:
    path = write(CONTENT)
    photos = load_dataset(path, path.parent).photos
    assert [photo.is_ignored.tolist() for photo in photos] == [[False, False], [True]]


def with_joints(*objects: dict[str, Any], **category: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content["categories"][0] |= {"keypoints": ["nose", "tail"], "skeleton": [[1, 2]]} | category
    for annotation, changes in zip(content["annotations"], objects, strict=False):
        annotation |= changes
    return content


def test_keypoints_are_those_that_the_category_names(write: Callable[[Any], Path]) -> None:
    path = write(with_joints({"keypoints": [12, 6, 2, 99, 99, 0]}))
    dataset = load_dataset(path, path.parent)
    assert dataset.skeleton == Skeleton(("nose", "tail"), ((0, 1),))
    dog, cat = dataset.photos[0].keypoints.tolist()
    assert dog == [[12, 6, 2], [0, 0, 0]]
    assert cat == [[0, 0, 0], [0, 0, 0]]  # its category has no keypoints
    assert dataset.photos[1].keypoints.shape == (1, 2, 3)


def test_keypoints_barely_outside_are_clipped_to_the_image(write: Callable[[Any], Path]) -> None:
    path = write(with_joints({"keypoints": [-0.5, 30.7, 2, 40.9, -1, 1]}))
    assert load_dataset(path, path.parent).photos[0].keypoints[0].tolist() == [[0, 30, 2], [40, 0, 1]]


@pytest.mark.parametrize("changes", [{}, {"keypoints": [0] * 6, "num_keypoints": 0}, {"keypoints": []}])
def test_unannotated_keypoints_are_unknown(write: Callable[[Any], Path], changes: dict[str, Any]) -> None:
    path = write(with_joints(changes))
    assert (load_dataset(path, path.parent).photos[0].keypoints[0, :, 2] == -1).all()


@pytest.mark.parametrize(
    ("keypoints", "words"),
    [
        ([12, 6, 2], "annotation 1: keypoints are 3 numbers, not 3 (x, y, visibility) for each of 2 keypoints"),
        ([12, 6, 2, 45, 6, 1], "annotation 1: the keypoint 'tail' is at 45, 6, outside its 40x30 image"),
        ([12, 6, 3, 0, 0, 0], "annotation 1: the keypoint 'nose' has the visibility 3"),
        (["12", 6, 2, 0, 0, 0], "annotation 1: keypoints are not a list of numbers"),
    ],
)
def test_invalid_keypoints_are_named(write: Callable[[Any], Path], keypoints: list[Any], words: str) -> None:
    path = write(with_joints({"keypoints": keypoints}))
    with pytest.raises(InvalidDataset, match=re.escape(words)):
        load_dataset(path, path.parent)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"keypoints": ["nose", "ear"]}, "have different keypoints"),
        ({"keypoints": ["nose", "nose"]}, "duplicate keypoints"),
        ({"keypoints": ["nose", "tail"], "skeleton": [[0, 1], [1, 2]]}, "keypoints count from 1"),
    ],
)
def test_inconsistent_or_invalid_category_keypoints_are_rejected(
    write: Callable[[Any], Path], second: dict[str, Any], words: str
) -> None:
    content = with_joints(**({"keypoints": second["keypoints"]} if "duplicate" in words else {}))
    content["categories"][1] |= second
    path = write(content)
    with pytest.raises(InvalidDataset, match=words):
        load_dataset(path, path.parent)


@pytest.mark.parametrize("area", [77.5, 480])  # up to twice that of the box, rounded up to 21 x 11.5
def test_annotated_areas_take_precedence_over_box_areas(write: Callable[[Any], Path], area: float) -> None:
    path = write(change("annotations", 0, area=area))
    assert load_dataset(path, path.parent).photos[0].areas.tolist() == [area, 1200]


@pytest.mark.parametrize("area", [0, 0.1])
def test_area_below_a_pixel_is_replaced_by_the_box_area(write: Callable[[Any], Path], area: float) -> None:
    path = write(change("annotations", 0, area=area))
    assert load_dataset(path, path.parent).photos[0].areas.tolist() == [210, 1200]


def test_empty_box_with_area_zero_is_skipped(write: Callable[[Any], Path]) -> None:
    path = write(change("annotations", 0, bbox=[10, 5, 4, 0.0], area=0.0))
    assert len(load_dataset(path, path.parent).photos[0].labels) == 1


def test_all_faults_can_be_listed(write: Callable[[Any], Path]) -> None:
    content = change("annotations", 0, bbox=[10, 5, 0, 4])
    content["annotations"][1]["category_id"] = 4
    path = write(content)
    faults: list[str] = []
    dataset = load_dataset(path, path.parent, faults.append)
    assert [fault.split(": ")[1] for fault in faults] == ["annotation 1", "annotation 2", "no boxes to train on"]
    assert [len(photo.labels) for photo in dataset.photos] == [0, 1]


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
        (change("annotations", 1, bbox=[10, 5, 35, 30]), "annotation 2: .* outside its 40x30 image"),
        (change("annotations", 1, bbox=[-3, 5, 5, 5]), "annotation 2: .* outside"),
        (change("annotations", 0, bbox=[1, 1, float("nan"), 5]), "annotation 1: .* no positive"),
        (change("annotations", 0, category_id=4), "annotation 1: unknown category 4"),
        (change("annotations", 2, image_id=4), "annotation 3: there is no image 4"),
        (change("images", 1, file_name="c.png"), "image 9: no file .*c.png"),
        (change("categories", 0, id=3), "share an id"),
        (change("categories", 0, name="cat"), "share an id or a name"),
        (change("categories", 0, id="x"), r"categories\[0\]: id: Input should be a valid integer"),
        (change("images", 1, id=5), "image 5: both a.png and b.png have this id"),
        (change("images", 1, height="30 px"), r"images\[1\]: height: Input should be a valid integer"),
        (change("images", 1, file_name=None), r"images\[1\]: file_name: Input should be a valid string"),
        (change("annotations", 2, category_id=[1]), r"annotations\[2\]: category_id: Input should be a valid integer"),
        (change("annotations", 0, bbox=[10, 5, 0, 4], area=12), "annotation 1: .* no positive width"),
        (change("annotations", 0, bbox=[40.2, 5, 0.5, 10]), "annotation 1: .* no positive width"),
        (change("annotations", 0, area=-1), "annotation 1: area -1 is not that of an object in its box"),
        (change("annotations", 0, area=float("nan")), "annotation 1: area nan"),
        (change("annotations", 0, area=484), "annotation 1: area 484"),
        (change("images", 1, width=21), r"b\.png: is 20x20 pixels .* the annotations say 21x20"),
        (change("images", 1, file_name="a.png", width=40, height=30), r"2 entries have the same photo .*a\.png"),
        (CONTENT | {"annotations": []}, "no boxes to train on"),
        (CONTENT | {"images": {}}, "has no list 'images'"),
        ({"images": [{}], "annotations": [], "categories": []}, "categories are empty"),
        ([], "COCO format"),
    ],
)
def test_each_fault_is_named_with_its_annotation(write: Callable[[Any], Path], content: Any, message: str) -> None:
    path = write(content)
    with pytest.raises(InvalidDataset, match=message):
        load_dataset(path, path.parent)


def test_empty_photo_is_named(write: Callable[[Any], Path]) -> None:
    path = write(CONTENT)
    (path.parent / "b.png").write_bytes(b"")
    with pytest.raises(InvalidDataset, match=r"b\.png: these bytes are no image"):
        load_dataset(path, path.parent)


def test_unsupported_file_type_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").touch()
    with pytest.raises(InvalidDataset, match=r"boxes\.csv: give a COCO \.json"):
        load_dataset(tmp_path / "boxes.csv", tmp_path)


def test_missing_or_invalid_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"none\.json: no such annotation file"):
        load_dataset(tmp_path / "none.json", tmp_path)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InvalidDataset, match=r"half\.json: not valid JSON"):
        load_dataset(tmp_path / "half.json", tmp_path)


def write_photo(path: Path, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


VOC = """<annotation>
  <filename>{name}.jpg</filename>
  <size><width>40</width><height>30</height><depth>3</depth></size>
  <object>
    <name>dog</name><difficult>0</difficult>
    <bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>15</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>12</xmin><ymin>7</ymin><xmax>15</xmax><ymax>9</ymax></bndbox></part>
  </object>
  <object>
    <name>cat</name><difficult>1</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>
  </object>
</annotation>
"""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Writes two photos of one split and a third of another; returns the first split's list file."""
    split = tmp_path / "ImageSets" / "Main" / "train.txt"
    split.parent.mkdir(parents=True)
    split.write_text("000001\n000002  -1\n\n")
    (tmp_path / "Annotations").mkdir()
    for name in ("000001", "000002", "000003"):
        write_photo(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(VOC.format(name=name))
    third = tmp_path / "Annotations" / "000003.xml"
    third.write_text(third.read_text().replace("dog", "bird"))
    return split


def test_voc_boxes_are_one_based_and_difficult_objects_ignored(voc: Path) -> None:
    dataset = load_dataset(voc, voc.parents[2] / "JPEGImages")
    assert dataset.labels == ("bird", "cat", "dog")  # includes the other split's bird
    assert [photo.path.name for photo in dataset.photos] == ["000001.jpg", "000002.jpg"]
    assert (dataset.photos[0].width, dataset.photos[0].height) == (40, 30)
    assert dataset.photos[0].boxes_xyxy.tolist() == [[10, 5, 30, 15], [0, 0, 40, 30]]
    assert dataset.photos[0].labels.tolist() == [2, 1]
    assert dataset.photos[0].is_ignored.tolist() == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmax>30</xmax>", "<xmax>9</xmax>", r"000001\.xml: object 1: bndbox .* no positive width"),
        ("<xmax>30</xmax>", "<xmax>50</xmax>", r"000001\.xml: object 1: bndbox .* outside its 40x30 image"),
        ("<xmax>30</xmax>", "", r"000001\.xml: object 1: bndbox.* are not numbers"),
        ("<name>cat</name>", "", r"000001\.xml: object 2: has no name"),
        ("<height>30</height>", "", r"000001\.xml: size.* are not whole numbers"),
        ("<width>40</width>", "<width>0</width>", r"000001\.jpg: is 40x30 pixels .* the annotations say 0x30"),
        ("000001.jpg", "000002.jpg", r"2 entries have the same photo .*000002\.jpg"),
        ("000001.jpg", "other.jpg", r"000001\.xml: no file .*other\.jpg"),
        ("</annotation>", "", r"000001\.xml: not valid XML"),
    ],
)
def test_each_voc_fault_is_named_with_its_file(voc: Path, old: str, new: str, message: str) -> None:
    path = voc.parents[2] / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InvalidDataset, match=message):
        load_dataset(voc, voc.parents[2] / "JPEGImages")
    faults: list[str] = []
    rest = load_dataset(voc, voc.parents[2] / "JPEGImages", faults.append)
    assert faults
    assert "000002.jpg" in [photo.path.name for photo in rest.photos]


def test_missing_voc_annotation_is_named_with_its_line(voc: Path) -> None:
    voc.write_text("000001\n000009\n")
    with pytest.raises(InvalidDataset, match=r"train\.txt:2: there is no readable .*000009\.xml"):
        load_dataset(voc, voc.parents[2] / "JPEGImages")


def test_split_file_outside_a_voc_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("000001\n")
    with pytest.raises(InvalidDataset, match=r"there is no folder .*Annotations"):
        load_dataset(tmp_path / "train.txt", tmp_path)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Writes two photos with boxes and one without; returns the path of `data.yaml`."""
    for name in ("a", "deeper/b", "c"):
        write_photo(tmp_path / "images" / "train" / f"{name}.png")
    labels = tmp_path / "labels" / "train"
    (labels / "deeper").mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    (labels / "deeper" / "b.txt").write_text("0 0.1 0.1 0.6 0.2 0.3 0.9\n")  # a polygon
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: {0: cat, 1: dog}\n")
    return tmp_path / "data.yaml"


def test_yolo_fractions_become_pixels_and_photos_without_a_label_file_are_empty(yolo: Path) -> None:
    dataset = load_dataset(yolo, yolo.parent / "images" / "train")
    assert dataset.labels == ("cat", "dog")
    assert [photo.path.name for photo in dataset.photos] == ["a.png", "c.png", "b.png"]
    assert dataset.photos[0].boxes_xyxy.tolist() == pytest.approx(np.array([[10, 12, 30, 18]]))
    assert dataset.photos[0].labels.tolist() == [1]
    assert dataset.photos[1].boxes_xyxy.shape == (0, 4)
    assert dataset.photos[2].boxes_xyxy.tolist() == pytest.approx(np.array([[4, 3, 24, 27]]))
    yolo.write_text("names: [no, 010]")  # without quotes, YAML's False and 8
    assert load_dataset(yolo, yolo.parent / "images" / "train").labels == ("no", "010")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.5 0.2", r"a\.txt:2: there is no class 2: the classes are 0 to 1"),
        ("1 0.5 0.5 0.5", r"a\.txt:2: .* is not `class x y width height`"),
        ("dog 0.5 0.5 0.5 0.2", r"a\.txt:2: .* is not `class x y width height`"),
        ("1 20 15 10 5", r"a\.txt:2: box .* outside its 40x30 image: .*fractions"),
        ("1 0.5 0.5 0 0.2", r"a\.txt:2: box .* no positive width"),
    ],
)
def test_each_yolo_fault_is_named_with_its_line(yolo: Path, line: str, message: str) -> None:
    (yolo.parent / "labels" / "train" / "a.txt").write_text(f"1 0.5 0.5 0.5 0.2\n{line}\n")
    with pytest.raises(InvalidDataset, match=message):
        load_dataset(yolo, yolo.parent / "images" / "train")


def test_yolo_labels_replace_the_last_images_folder(yolo: Path) -> None:
    inner = yolo.parent / "images" / "set"
    write_photo(inner / "images" / "d.png")
    (inner / "labels").mkdir()
    (inner / "labels" / "d.txt").write_text("0 0.5 0.5 0.5 0.2\n")
    [photo] = load_dataset(yolo, inner / "images").photos
    assert photo.labels.tolist() == [0]


def test_yolo_keypoints_are_not_read_as_a_polygon(yolo: Path) -> None:
    yolo.write_text("names: [cat, dog]\nkpt_shape: [2, 2]\n")
    (yolo.parent / "labels" / "train" / "deeper" / "b.txt").unlink()
    labels = yolo.parent / "labels" / "train" / "a.txt"
    labels.write_text("1 0.5 0.5 0.5 0.2 0.1 0.1 0.9 0.9\n")
    dataset = load_dataset(yolo, yolo.parent / "images" / "train")
    assert dataset.photos[0].boxes_xyxy.tolist() == pytest.approx(np.array([[10, 12, 30, 18]]))
    labels.write_text("1 0.5 0.5 0.5 0.2 0.1 0.1\n")
    with pytest.raises(InvalidDataset, match=r"a\.txt:1: .* and the 4 numbers of `kpt_shape`"):
        load_dataset(yolo, yolo.parent / "images" / "train")


@pytest.mark.parametrize(
    "content",
    ["names: 3", "names: [cat, cat]", "names: {1: cat}", "nc: 2", "names: [", "- a", "names: [a]\nkpt_shape: 3"],
)
def test_invalid_data_yaml_is_rejected(yolo: Path, content: str) -> None:
    yolo.write_text(content)
    with pytest.raises(InvalidDataset, match=r"data\.yaml: "):
        load_dataset(yolo, yolo.parent / "images" / "train")


def test_broken_yolo_photo_is_named(yolo: Path) -> None:
    (yolo.parent / "images" / "train" / "c.png").write_bytes(b"no picture")
    with pytest.raises(InvalidDataset, match=r"c\.png: these bytes are no image"):
        load_dataset(yolo, yolo.parent / "images" / "train")


@pytest.mark.parametrize("name", ["c.TXT", "d.txt", "deeper/e.txt"])
def test_labels_without_a_photo_are_named(yolo: Path, name: str) -> None:
    labels = yolo.parent / "labels" / "train"
    (labels / "classes.txt").write_text("cat\ndog\n")
    (labels / name).write_text("1 0.5 0.5 0.5 0.2\n")
    write_photo(yolo.parent / "images" / "train" / "d.png")
    (yolo.parent / "images" / "train" / "d.png").rename(yolo.parent / "images" / "train" / "d.jfif")
    with pytest.raises(InvalidDataset, match=rf"{name}: no photo for these labels"):
        load_dataset(yolo, yolo.parent / "images" / "train")


def test_yolo_folder_without_labels_says_where_they_would_be(yolo: Path) -> None:
    (yolo.parent / "labels").rename(yolo.parent / "label")
    with pytest.raises(InvalidDataset, match=r"no boxes .* labels of .*a\.png would be in .*labels/train/a\.txt"):
        load_dataset(yolo, yolo.parent / "images" / "train")

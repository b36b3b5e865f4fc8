import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.draw import choose_colour
from tests.training.configs import small_config
from tests.training.joints import add_joints
from training.__main__ import main
from training.datasets.dataset import Dataset, Object, make_photo
from training.datasets.load import load_dataset
from training.inspect import draw_crowds, draw_views


def test_valid_data_set_is_counted_and_drawn(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(shapes / "train.json"), str(shapes / "images"), "--output", str(tmp_path), "--input-size", "64"]
    main(["inspect", *arguments])
    printed = capsys.readouterr().out
    content = json.loads((shapes / "train.json").read_text())
    assert f"24 photos, {len(content['annotations'])} boxes, 0 faults" in " ".join(printed.split())
    row = next(line for line in printed.splitlines() if "circle" in line)
    circles = [a for a in content["annotations"] if a["category_id"] == 1]
    assert [int(cell) for cell in row.split("│")[2:4]] == [len({a["image_id"] for a in circles}), len(circles)]
    assert cv2.imread(str(tmp_path / "views.jpg")).shape == (4 * 64, 4 * 2 * 64, 3)


def test_swapped_keypoints_are_named(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = add_joints(shapes / "train.json", tmp_path / "joints.json", keypoints=["LEFT_CORNER", "RIGHT_CORNER"])
    main(["inspect", str(path), str(shapes / "images"), "--output", str(tmp_path), "--input-size", "64"])
    assert "mirrored images swap the keypoints LEFT_CORNER/RIGHT_CORNER, but not -" in capsys.readouterr().out


def test_every_fault_is_named(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((shapes / "train.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["category_id"] = 9
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as status:
        main(["inspect", str(path), str(shapes / "images"), "--output", str(tmp_path)])
    assert status.value.code == 2
    captured = capsys.readouterr()
    assert "annotation 1: bbox" in captured.out
    assert "annotation 2: unknown category 9" in captured.out
    assert "2 faults" in captured.err


def test_missing_photos_are_faults(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(shapes / "train.json"), str(tmp_path)])
    captured = capsys.readouterr()
    assert "0 photos, 0 boxes" in captured.out
    assert "25 faults" in captured.err  # a missing file for each photo, and an empty data set


def test_centres_are_white_and_ignored_cells_grey(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, color_jitter=0, scale_range=(1, 1), aspect_jitter=0, flip=0)
    photo = load_dataset(shapes / "train.json", shapes / "images").photos[0]
    whole = (0, 0, photo.width, photo.height)
    lone = make_photo(1, photo.path, photo.width, photo.height, [Object((70, 70, 90, 90), 0)])
    crowd = make_photo(1, photo.path, photo.width, photo.height, [Object(whole, 0, is_ignored=True)])
    pictures = [draw_views(Dataset(Path("x"), ("a",), (1,), (each,)), config) for each in (lone, crowd)]
    lone_heatmap, crowd_heatmap = (picture[:, 64:128].astype(int) for picture in pictures)
    assert lone_heatmap[33, 33].min() > lone_heatmap[5, 5].max()
    assert lone_heatmap[33, 33].min() >= 204
    assert (np.abs(crowd_heatmap - lone_heatmap)[5, 5] >= 80).all()


def test_crowds_are_drawn_only_if_there_are_any(shapes: Path) -> None:
    photo = load_dataset(shapes / "train.json", shapes / "images").photos[0]
    boxes = [(60, 60, 100, 100), (62, 60, 102, 100), (10, 10, 30, 30)]
    crowded = make_photo(1, photo.path, photo.width, photo.height, [Object(box, 0) for box in boxes])
    alone = make_photo(2, photo.path, photo.width, photo.height, [Object(boxes[2], 0)])
    picture = draw_crowds(Dataset(Path("x"), ("a",), (1,), (alone, crowded)), 160)
    assert picture is not None
    assert picture.shape == (160, 4 * 160, 3)
    colour = choose_colour(0)
    assert tuple(picture[80, 60]) == tuple(picture[80, 101]) == colour
    assert tuple(picture[20, 10]) != colour  # not in a crowded cell
    assert draw_crowds(Dataset(Path("x"), ("a",), (1,), (alone,)), 160) is None

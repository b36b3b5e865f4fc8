"""The steps that Ray runs for each batch of photos, without Ray."""

from pathlib import Path

import numpy as np
import pytest

from app.pipeline import Filter
from model.detector import Detector
from tests.app.colours import RED, encode, paint, save_rectangular_model

pytest.importorskip("ray")

from pyarrow import fs  # installed with Ray

from app.cluster.bulk_steps import FindObjects, ReadPhotos


def test_photos_are_sorted_by_shape_and_keep_their_own_results(tmp_path: Path) -> None:
    detector = Detector(save_rectangular_model(tmp_path / "rectangles.onnx"), "cpu", 1)
    sizes = {"a.png": (96, 64), "b.png": (64, 96), "c.png": (96, 96), "d.png": (192, 128), "e.png": (64, 96)}
    for at, (name, size) in enumerate(sizes.items()):
        (tmp_path / name).write_bytes(encode(paint(*size, (RED, (at, 2 * at, at + 20, 40)))))
    (tmp_path / "f.png").write_bytes(b"nothing")
    read_photos = ReadPhotos(fs.LocalFileSystem(), "", detector.shapes, 10**6, 10**6)
    files = np.array([str(tmp_path / name) for name in (*sizes, "f.png")], object)
    batch = read_photos({"file": files})
    assert [Path(file).name for file in batch["file"]] == ["f.png", "b.png", "e.png", "a.png", "d.png", "c.png"]
    rows = FindObjects(detector.path, "cpu", 1, Filter(0.5, 10), detector.shapes)(batch).to_pylist()
    assert [row["file"] for row in rows] == batch["file"].tolist()
    assert (rows[0]["problem"], rows[0]["detections"]) == ("unknown-format", None)
    for row in rows[1:]:
        assert (row["width"], row["height"]) == sizes[Path(row["file"]).name]
        [expected] = detector.detect([Path(row["file"]).read_bytes()])
        [found] = row["detections"]
        edges = [found[name] for name in ("x_min", "y_min", "x_max", "y_max")]
        assert edges == pytest.approx(expected.boxes_xyxy[0].tolist())

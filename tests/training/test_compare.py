import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from rich.console import Console

from model.detector import Detector
from model.metadata import Metadata
from model.network.centernet import CenterNet
from model.network.graph import build_onnx, save_onnx
from training.__main__ import main
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.evaluation.compare import time_interleaved
from training.evaluation.evaluate import detect_with_model
from training.evaluation.metrics import measure
from training.report.charts import Point, draw_trade_off


@pytest.fixture(scope="module")
def dataset(shapes: Path) -> Dataset:
    return load_dataset(shapes / "val.json", shapes / "images")


@pytest.fixture(scope="module")
def models(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One network at two input sizes."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    proto = build_onnx(CenterNet("resnet18", len(dataset.labels), neck_width=8, head_width=8).eval())
    paths = [folder / "small.onnx", folder / "large.onnx"]
    for path, size in zip(paths, (64, 512), strict=True):
        metadata = Metadata(
            path.stem, dataset.labels, dataset.label_ids, size, size, 4, "fp32", "none", None, None, "0", size_step=16
        )
        save_onnx(proto, metadata, path)
    return paths


def test_models_are_measured_and_plotted_beside_published_points(
    models: list[Path], dataset: Dataset, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the objects are the first model's best detections, a tenth lower: its AP is neither 0 nor its AP50
    content = json.loads((shapes / "val.json").read_text()) | {"annotations": []}
    for photo, found in zip(dataset.photos, detect_with_model(Detector(models[0]), dataset, Console()), strict=True):
        left, top, right, bottom = found.boxes_xyxy[0].tolist()
        box = {"bbox": [left, top, right - left, 0.9 * (bottom - top)], "image_id": photo.id}
        category = dataset.label_ids[found.labels[0]]
        content["annotations"].append(box | {"id": photo.id, "category_id": category})
    (tmp_path / "found.json").write_text(json.dumps(content))
    dataset = load_dataset(tmp_path / "found.json", shapes / "images")
    data = ["--annotations", str(tmp_path / "found.json"), "--images", str(shapes / "images")]
    folder = tmp_path / "out"
    out = ["--chart", str(folder / "chart.svg"), "--json", str(folder / "figures.json")]
    main(["compare", *map(str, models), *data, "--point", "NanoDet-m,27.6,46.7,9", *out])
    printed = capsys.readouterr().out
    assert "NanoDet-m" in printed
    small, large = json.loads((folder / "figures.json").read_text())["models"]
    for path, figures in zip(models, (small, large), strict=True):
        metrics = measure(dataset, detect_with_model(Detector(path, "cpu"), dataset, Console(quiet=True)))
        expected = (path.stem, round(metrics.ap, 2), round(metrics.ap50, 2))
        assert (figures["name"], figures["ap"], figures["ap50"]) == expected
    assert 0 < small["ap"] < small["ap50"]
    assert small["milliseconds"] < large["milliseconds"]
    drawn = " ".join(ET.parse(folder / "chart.svg").getroot().itertext())
    assert {"small", "large"} <= set(drawn.split())


def test_categories_that_a_model_lacks_are_named(
    models: list[Path], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((shapes / "val.json").read_text())
    content["categories"].append({"id": 9, "name": "star"})
    content["annotations"][0]["category_id"] = 9
    (tmp_path / "stars.json").write_text(json.dumps(content))
    data = ["--annotations", str(tmp_path / "stars.json"), "--images", str(shapes / "images")]
    main(["compare", str(models[0]), *data])
    assert "small: counted with an AP of 0, as the model lacks them: star\n" in capsys.readouterr().out


def test_larger_input_takes_longer(models: list[Path], dataset: Dataset) -> None:
    detectors = [Detector(path, "cpu", threads=1) for path in models]
    small, large = time_interleaved(detectors, dataset.photos[:3])
    assert 0 < small < large


def test_points_are_plotted_at_their_coordinates() -> None:
    figure = draw_trade_off([Point("b", 20, 40, 8), Point("a", 10, 30, 4)], [Point("c", 30, 50, 9)])
    for axes, heights in zip(figure.axes, ([10, 20], [30, 40]), strict=True):
        ours, others = axes.lines
        assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([4, 8], heights)
        assert list(others.get_xdata()) == [9]
        assert sorted(text.get_text() for text in axes.texts) == ["a", "b", "c"]


@pytest.mark.parametrize(("flag", "value"), [("--point", "NanoDet-m,27.6,46.7"), ("--chart", "chart.docx")])
def test_invalid_point_or_chart_format_is_rejected_first(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "none.onnx", flag, value])
    assert flag in capsys.readouterr().err

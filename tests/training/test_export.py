import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from model.canvas import prepare
from model.detector import Detections, Detector
from model.metadata import Metadata
from model.network.backbones.hourglass import Hourglass
from model.network.cells import DenseMap, boxes_at, unravel_cells
from model.network.centernet import BACKBONES, CenterNet, fitting_necks
from model.network.deformable import DeformableConv
from model.network.graph import build_onnx, save_onnx
from model.network.heads import STRIDE, KeypointMaps
from model.network.keypoints import decode_keypoints
from model.network.peaks import NMS_IOU
from model.skeleton import NO_JOINTS, Skeleton
from tests.training.configs import small_config
from training.__main__ import main
from training.config import InvalidConfig
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.evaluation.diagnosis import diagnose
from training.evaluation.evaluate import detect_with_model
from training.evaluation.overlap import box_iou
from training.export import export as exporting
from training.export.export import ParityFailure, check_parity, export
from training.loader import LetterboxedPhotos, read_photo
from training.weights.checkpoint import Checkpoint, build_network

METADATA = Metadata(
    "random",
    ("circle", "square", "triangle"),
    (1, 2, 3),
    96,
    96,
    4,
    "fp32",
    "none",
    None,
    None,
    "0",
    skeleton=Skeleton(("a", "b")),
    size_step=16,
)


@pytest.fixture
def dataset(shapes: Path) -> Dataset:
    return load_dataset(shapes / "val.json", shapes / "images")


@pytest.fixture
def checkpoint(shapes: Path, tmp_path: Path, dataset: Dataset) -> Checkpoint:
    torch.manual_seed(0)
    config = small_config(shapes, tmp_path)
    weights = build_network(config, 3).state_dict()
    return Checkpoint(config, dataset.labels, dataset.label_ids, weights, 0, "0123abc")


# each kind of backbone and each neck once: they export independently, and deeper variants only repeat layers
PAIRS = [("efficientnet_lite0", "top_down", 4), ("resnet50", "top_down", 4), ("hourglass104", "none", 4)]
PAIRS += [("resnet18", neck, 4) for neck in fitting_necks("resnet18")]
PAIRS += [("dla34", "top_down", 4), ("dla34", "aggregation", 4), ("resnet18", "top_down", 2)]


@pytest.mark.parametrize(("backbone", "neck", "stride"), PAIRS)
def test_graph_equals_network_alone_and_in_a_batch(
    backbone: str, neck: str, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a small variant: the full graph has 765 MB
    monkeypatch.setitem(BACKBONES, "hourglass104", lambda: Hourglass(2, (16, 24, 32), (2, 1, 2), out_width=16))
    torch.manual_seed(0)
    network = CenterNet(backbone, class_count=3, neck_width=8, head_width=8, neck=neck, joint_count=2, stride=stride)
    width = 64 + network.size_step  # the smallest step: the coarsest map has an odd or fractional number of cells
    coarse = np.random.default_rng(0).integers(0, 256, (3, 8, width // 8, 3), np.uint8)
    # smooth like photos: with noise the deepest networks amplify rounding errors
    canvases = np.stack([cv2.resize(each, (width, 64), interpolation=cv2.INTER_CUBIC) for each in coarse])
    for module in network.modules():
        if isinstance(module, DeformableConv):  # its initial offsets are zero
            torch.nn.init.normal_(module.conv_offset_mask.weight, std=0.01)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.from_numpy(canvases))  # statistics of these images: otherwise the maps are nearly flat
        spread = network.eval()(torch.from_numpy(canvases)).heatmap.std()
        network.heatmap_head[2].weight *= max(1.0, 0.75 / spread.item())  # otherwise some maps have no clear peak
    path = tmp_path / "random.onnx"
    metadata = dataclasses.replace(METADATA, size_step=network.size_step)
    save_onnx(build_onnx(network), metadata, path)
    detector = Detector(path, "cpu")
    assert detector.metadata == metadata
    together = detector.infer(list(canvases))
    with torch.inference_mode():
        maps = network(torch.from_numpy(canvases))
        heatmap = maps.heatmap.sigmoid()
        grid_width, cell_count = heatmap.shape[3], heatmap[0, 0].numel()
        size, offset = (each.dense().flatten(2).transpose(1, 2) for each in (maps.size, maps.offset))
        every = unravel_cells(torch.arange(cell_count).expand(3, -1), grid_width)
        boxes = stride * boxes_at(every, size.clamp(min=0), offset)  # (B, cells, 4)
        keypoints = (maps.keypoints.places.dense(), maps.keypoints.heatmap, maps.keypoints.offset.dense())
        nearby = F.unfold(F.pad(heatmap, (1, 1, 1, 1)), 3).view(3, 3, 9, -1)  # (B, C, 3x3, cells)
        # random weights give near-ties, and rounding decides which of them is a peak
        above = nearby[:, :, 4] - nearby[:, :, [0, 1, 2, 3, 5, 6, 7, 8]].amax(2)
        is_clear, is_peak = above > 4.5e-3, above > -4.5e-3
    for index, found in enumerate(together):
        [alone] = detector.infer([canvases[index]])
        scores = heatmap[index].flatten(1)
        for rows in (alone, found):  # tolerances are the float32 error of the deepest network
            gap = torch.from_numpy(rows.boxes_xyxy)[:, None] - boxes[index]
            same_box = gap.abs().amax(2) < 0.25  # (rows, cells)
            same_score = (torch.from_numpy(rows.scores)[:, None] - scores[rows.labels]).abs() < 4e-3
            assert (same_box & same_score).any(1).all()  # no extra detections
            has_row = torch.zeros_like(scores, dtype=torch.bool)
            for row, label in enumerate(rows.labels):
                has_row[label] |= (same_box & same_score)[row]
            expected = is_clear[index] & (scores > rows.scores.min() + 4.5e-3)
            if stride < STRIDE:  # duplicates of a box with a higher score are removed
                is_near = torch.from_numpy(box_iou(boxes[index].numpy(), boxes[index].numpy())) > NMS_IOU - 0.05
                is_better = (scores[:, None] > scores[..., None]) & is_peak[index][:, None]  # (C, cells, cells)
                expected &= ~(is_better & is_near).any(2)
            assert expected.any()
            assert has_row[expected].all()  # no missing detections

            cells = (same_box & same_score).int().argmax(1)
            places, joint_heatmap, within = (each[index : index + 1] for each in keypoints)
            joints = decode_keypoints(
                KeypointMaps(DenseMap(places), joint_heatmap, DenseMap(within)),
                unravel_cells(cells[None], grid_width),
                torch.from_numpy(rows.boxes_xyxy)[None] / stride,
            )[0]
            assert rows.keypoints is not None
            apart = (torch.from_numpy(rows.keypoints)[..., :2] - stride * joints[..., :2]).abs().amax(-1)
            assert (apart < 0.25).float().mean() > 0.75  # except those between two equal peaks


def test_exported_metadata_has_ap_and_threshold(checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "models" / "shapes.onnx"
    metrics = export(checkpoint, dataset, path, Console(quiet=True))
    metadata = Detector(path, "cpu").metadata
    assert metadata.name == "shapes"
    assert metadata.labels == dataset.labels
    assert metadata.ap == pytest.approx(metrics.ap, abs=0.01)
    assert metadata.git_commit == "0123abc"
    assert metadata.recipe["backbone"] == "resnet18"
    assert metadata.recipe["warmup_steps"] == 2
    assert "output" not in metadata.recipe
    assert metadata.threshold is not None
    found = detect_with_model(Detector(path, "cpu"), dataset, Console(quiet=True))
    assert metadata.threshold == diagnose(dataset, found).threshold
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no paths of the exporting machine
    assert [file.name for file in path.parent.iterdir()] == ["shapes.onnx"]


def test_model_of_another_input_size_is_measured_at_that_size(
    checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path
) -> None:
    console = Console(quiet=True)
    export(checkpoint, dataset, tmp_path / "large.onnx", console, input_size=96)
    detector = Detector(tmp_path / "large.onnx")
    assert (detector.metadata.input_height, detector.metadata.input_width) == (96, 96)
    metrics = exporting.measure(dataset, detect_with_model(detector, dataset, console))
    assert detector.metadata.ap50 == pytest.approx(metrics.ap50, abs=0.01)
    assert detector.metadata.recipe == checkpoint.config.recipe  # of the training, which was at another size
    with pytest.raises(InvalidConfig, match="input_size: must be a multiple of 32"):
        export(checkpoint, dataset, tmp_path / "odd.onnx", console, input_size=100)
    assert not (tmp_path / "odd.onnx").exists()


def test_graph_that_fails_the_parity_check_is_not_written(
    checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_another(network: CenterNet) -> object:
        with torch.no_grad():
            for parameter in network.size_head.parameters():
                parameter += 0.5
        proto = build_onnx(network)
        with torch.no_grad():
            for parameter in network.size_head.parameters():
                parameter -= 0.5
        return proto

    monkeypatch.setattr(exporting, "build_onnx", build_another)
    path = tmp_path / "models" / "shapes.onnx"
    with pytest.raises(ParityFailure, match=r"val_0000\d.png: the graph misses (circle|square|triangle)"):
        export(checkpoint, dataset, path, Console(quiet=True))
    assert list(path.parent.iterdir()) == []


def test_parity_check_tolerates_only_ties_of_neighbouring_peaks(
    checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, network = tmp_path / "shapes.onnx", build_network(checkpoint.config, 3, joint_count=2).eval()
    facts = dataclasses.replace(METADATA, input_height=64, input_width=64)
    save_onnx(build_onnx(network), facts, path)
    detector = Detector(path, "cpu")
    infer = detector.infer

    def alter(change: Callable[[Detections], Detections]) -> None:
        monkeypatch.setattr(detector, "infer", lambda canvases: [change(found) for found in infer(canvases)])

    def move_boxes(rows: slice, pixels: float) -> Callable[[Detections], Detections]:
        def move(found: Detections) -> Detections:
            boxes = found.boxes_xyxy.copy()
            boxes[rows] += pixels
            return dataclasses.replace(found, boxes_xyxy=boxes)

        return move

    def append_first_elsewhere(found: Detections) -> Detections:
        boxes = np.concatenate([found.boxes_xyxy, found.boxes_xyxy[:1] + 100])
        return dataclasses.replace(found.select(np.append(np.arange(len(found.labels)), 0)), boxes_xyxy=boxes)

    one_photo = dataclasses.replace(dataset, photos=dataset.photos[:1])
    alter(move_boxes(slice(1), 1.0))  # only the box with the highest score
    assert check_parity(network, detector, one_photo) == 1
    for change in (
        move_boxes(slice(1), 100.0),
        move_boxes(slice(None), 1.0),
        lambda found: dataclasses.replace(found, scores=found.scores + np.float32(0.002)),
        lambda found: dataclasses.replace(found, labels=(found.labels + 1) % 3),
        lambda found: dataclasses.replace(found, keypoints=found.keypoints + np.float32(1)),
        append_first_elsewhere,
    ):
        alter(change)
        with pytest.raises(ParityFailure):
            check_parity(network, detector, one_photo)


def test_training_and_serving_letterbox_alike(checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "shapes.onnx"
    facts = dataclasses.replace(METADATA, input_height=64, input_width=64, skeleton=NO_JOINTS)
    save_onnx(build_onnx(checkpoint.build_network()), facts, path)
    detector = Detector(path, "cpu")
    photo = dataset.photos[0]
    assert (detector.prepare(photo.path.read_bytes()).pixels == LetterboxedPhotos(dataset, 64)[0]).all()
    wide = read_photo(photo)[:96]  # of 128
    canvas = detector.prepare(wide)
    assert canvas.letterbox.shape == (48, 64)
    assert (canvas.pixels == prepare(wide, [(64, 64)]).pixels[8:-8]).all()  # the square without its padding


def test_train_evaluate_export_evaluate_in_a_row(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    settings = small_config(shapes, tmp_path / "runs", name="mine").model_dump(mode="json", exclude_none=True)
    config.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()))
    main(["train", str(config), "--epochs", "1"])
    best, model = tmp_path / "runs" / "mine" / "best.pt", tmp_path / "mine.onnx"
    main(["evaluate", str(best), "--json", str(tmp_path / "torch.json")])
    main(["export", str(best), str(model)])
    data = ["--annotations", str(shapes / "val.json"), "--images", str(shapes / "images")]
    main(["evaluate", str(model), *data, "--json", str(tmp_path / "onnx.json")])
    assert "triangle" in capsys.readouterr().out
    figures = [json.loads((tmp_path / name).read_text()) for name in ("torch.json", "onnx.json")]
    assert figures[0]["ap50"] == pytest.approx(figures[1]["ap50"], abs=1)


def test_training_exports_best_weights_under_the_run_name(shapes: Path, tmp_path: Path) -> None:
    config = tmp_path / "gate.toml"
    settings = small_config(shapes, tmp_path / "runs", name="gate").model_dump(mode="json", exclude_none=True)
    config.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()))
    main(["train", str(config), "--epochs", "1", "--export", str(tmp_path / "models")])
    main(["train", str(config), "--epochs", "1", "--resume", "--export", str(tmp_path / "other.onnx")])
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["gate.onnx"]
    exported, again = (
        Detector(path, "cpu").metadata for path in (tmp_path / "models/gate.onnx", tmp_path / "other.onnx")
    )
    assert (exported.name, again.name) == ("gate", "other")
    assert exported.ap == again.ap is not None


def test_training_does_not_start_if_the_export_path_is_not_writable(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = ["--name", "early", "--output", str(tmp_path / "runs"), "--data-root", str(shapes)]
    with pytest.raises(SystemExit, match="2"):
        main(["train", "training/configs/tiny.toml", *arguments, "--export", str(tmp_path / "file" / "models")])
    assert capsys.readouterr().err.startswith(f"centernet-train: --export: {tmp_path}/file/models cannot be created")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "none.pt"], "none.pt: no such file of weights"),
        (["evaluate", "none.onnx"], "none.onnx"),
        (["export", __file__, "out.onnx"], "not a file of PyTorch weights"),
        (["import", "none.pth", "out.pt"], "none.pth: no such file of weights"),
        (["train", "none.toml"], "none.toml: no such configuration file"),
        (["evaluate", "none.pt", "--threshold", "3"], "unknown argument --threshold"),
        (["evaluate", "none.pt", "--without-photos"], "it needs --report"),
        (["export", "none.pt", "out.onnx", "--max-ap50-loss", "1"], "--max-ap50-loss compares precisions: it needs"),
        (["export", "none.pt", "out.onnx", "--train-images", "."], "they need --precision int8"),
        (["export", "none.pt", "out.onnx", "--precision=fp16", "--train-images", "."], "they need --precision int8"),
        (["train", "training/configs/tiny.toml", "--dry-run", "--resume"], "without --resume and --export"),
        (["train", "training/configs/tiny.toml", "--dry-run", "--export", "models"], "without --resume and --export"),
    ],
)
def test_invalid_input_ends_the_command_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

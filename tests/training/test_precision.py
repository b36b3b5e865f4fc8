import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from rich.console import Console

from model.detector import Detector
from model.metadata import Metadata
from model.network.centernet import CenterNet
from model.network.graph import build_onnx, save_onnx
from tests.training.configs import small_config
from training.__main__ import main
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.evaluation.calibration import ScoredDetections, fit_platt_scaling
from training.evaluation.evaluate import detect_with_model
from training.evaluation.keypoint_metrics import KeypointMetrics
from training.evaluation.metrics import Metrics, measure
from training.export import precision
from training.export.export import export
from training.export.half import convert_to_fp16
from training.export.precision import PrecisionLoss, PrecisionTarget, reduce_precision
from training.export.quantize import Quantizer, capture_tensors
from training.export.trunk import find_full_precision_nodes, find_logit_layers, find_normalisation, fold_constants
from training.files import write_json
from training.weights.checkpoint import Checkpoint, build_network

LABELS = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def checkpoint(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random weights whose maps have clear peaks."""
    torch.manual_seed(0)
    config = small_config(shapes, tmp_path_factory.mktemp("runs"), backbone="efficientnet_lite0")
    network = build_network(config, 3)
    spread_activations(network)
    return Checkpoint(config, LABELS, (1, 2, 3), network.state_dict(), 0, "0123abc")


def draw_canvases(count: int = 8) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return np.stack([cv2.resize(each, (64, 64), interpolation=cv2.INTER_CUBIC) for each in coarse])


def spread_activations(network: CenterNet) -> None:
    """Fits the batch norms to random canvases and scales the heatmap logits to a standard deviation of 2."""
    canvases = torch.from_numpy(draw_canvases())
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(canvases)
        network.heatmap_head[2].weight *= 2 / network.eval()(canvases).heatmap.std()


@pytest.fixture(scope="module")
def proto(checkpoint: Checkpoint) -> onnx.ModelProto:
    return build_onnx(checkpoint.build_network())


@pytest.fixture(scope="module")
def quantizer(proto: onnx.ModelProto) -> Quantizer:
    return Quantizer(proto, draw_canvases())


@pytest.fixture(scope="module")
def exact(proto: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("exact") / "exact.onnx"
    metadata = Metadata("exact", LABELS, (1, 2, 3), 64, 64, 4, "fp32", "none", None, None, "0", size_step=16)
    save_onnx(proto, metadata, path)
    return Detector(path, "cpu")


@pytest.fixture(scope="module")
def self_labelled(exact: Detector, shapes: Path) -> Dataset:
    """Validation photos whose objects are the network's own 30 best detections, so that its AP50 is 100."""
    dataset = load_dataset(shapes / "val.json", shapes / "images")
    found = [exact.detect([photo.path.read_bytes()])[0] for photo in dataset.photos]
    least = np.sort(np.concatenate([each.scores for each in found]))[-30]
    photos = []
    for photo, each in zip(dataset.photos, found, strict=True):
        best = each.select(each.scores >= least)
        count = len(best.labels)
        areas = (best.boxes_xyxy[:, 2:] - best.boxes_xyxy[:, :2]).prod(1)
        objects = {"boxes_xyxy": best.boxes_xyxy, "labels": best.labels, "areas": areas}
        rest = {"is_ignored": np.zeros(count, np.bool_), "keypoints": np.zeros((count, 0, 3), np.float32)}
        photos.append(dataclasses.replace(photo, **objects, **rest))
    return dataclasses.replace(dataset, photos=tuple(photos))


@pytest.fixture(scope="module")
def before(exact: Detector, self_labelled: Dataset) -> Metrics:
    metrics = measure(self_labelled, detect_with_model(exact, self_labelled, Console(quiet=True)))
    assert metrics.ap50 > 99
    return metrics


@pytest.mark.parametrize(("target_precision", "share_of_bytes"), [("fp16", 0.55), ("int8", 0.35)])
def test_reduced_precision_keeps_most_of_ap50(
    target_precision: str,
    share_of_bytes: float,
    proto: onnx.ModelProto,
    exact: Detector,
    before: Metrics,
    self_labelled: Dataset,
    tmp_path: Path,
) -> None:
    target = PrecisionTarget(target_precision, 20.0, self_labelled)
    reduced = reduce_precision(proto, exact, before, self_labelled, target, Console(quiet=True))
    write_json(tmp_path / "report.json", dataclasses.asdict(reduced.comparison))
    figures = json.loads((tmp_path / "report.json").read_text())
    one, other = figures["before"], figures["after"]
    assert one["ap50"] > 99
    assert other["ap50"] == pytest.approx(reduced.metrics.ap50, abs=0.01)
    assert figures["ap50_loss"] == pytest.approx(one["ap50"] - other["ap50"], abs=0.011)
    assert figures["photos"] == len(self_labelled.photos)
    assert figures["float_layers"] == []
    assert other["megabytes"] < share_of_bytes * one["megabytes"]
    assert figures["speedup"] == pytest.approx(one["milliseconds"] / other["milliseconds"], rel=0.02)


def test_command_exports_int8(
    checkpoint: Checkpoint, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "best.pt")
    path, report = tmp_path / "models" / "fast.onnx", tmp_path / "reports" / "report.json"
    main(["export", str(tmp_path / "best.pt"), str(path), "--precision", "int8", "--report", str(report)])
    printed = capsys.readouterr().out
    assert "layers kept in float32: only the heatmaps' last" in printed
    assert Detector(path, "cpu").metadata.precision == "int8"
    assert [each.name for each in path.parent.iterdir()] == ["fast.onnx"]
    figures = json.loads(report.read_text())
    assert (figures["before"]["precision"], figures["after"]["precision"]) == ("fp32", "int8")
    assert figures["after"]["megabytes"] == pytest.approx(path.stat().st_size / 1e6, abs=0.1)
    main(["evaluate", str(path), "--annotations", str(shapes / "val.json"), "--images", str(shapes / "images")])
    assert "triangle" in capsys.readouterr().out


def test_fp16_needs_no_training_photos(checkpoint: Checkpoint, tmp_path: Path) -> None:
    without = checkpoint.config.model_copy(update={"train_annotations": Path("none.json")})
    dataclasses.replace(checkpoint, config=without).save(tmp_path / "best.pt")
    arguments = ["--precision", "fp16", "--max-ap50-loss", "100"]
    main(["export", str(tmp_path / "best.pt"), str(tmp_path / "half.onnx"), *arguments])
    assert Detector(tmp_path / "half.onnx", "cpu").metadata.precision == "fp16"


def test_model_that_loses_too_much_ap50_is_not_written(
    checkpoint: Checkpoint, self_labelled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halve_badly(proto: onnx.ModelProto) -> onnx.ModelProto:
        halved = convert_to_fp16(proto)
        for tensor in halved.graph.initializer:
            if tensor.name == "network.heatmap_head.2.weight":
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return halved

    monkeypatch.setattr(precision, "convert_to_fp16", halve_badly)
    path = tmp_path / "models" / "fast.onnx"
    target = PrecisionTarget("fp16", 1.0, self_labelled)
    with pytest.raises(PrecisionLoss, match=r"fp16 loses at least \d\d\.\d\d AP50, more than the 1 allowed: raise"):
        export(checkpoint, self_labelled, path, Console(quiet=True), target, tmp_path / "report.json")
    assert list(path.parent.iterdir()) == []
    assert not (tmp_path / "report.json").exists()


def test_exported_scores_are_calibrated(
    checkpoint: Checkpoint, exact: Detector, self_labelled: Dataset, tmp_path: Path
) -> None:
    console = Console(quiet=True)
    export(checkpoint, self_labelled, tmp_path / "calibrated.onnx", console)
    before, after = (
        detect_with_model(each, self_labelled, console)
        for each in (exact, Detector(tmp_path / "calibrated.onnx", "cpu"))
    )
    scaling = fit_platt_scaling(ScoredDetections.collect(self_labelled, before))
    assert scaling is not None and abs(scaling.slope - 1) > 0.5
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other.scores[:10], scaling.apply(one.scores[:10]), atol=1e-3)  # then come ties


def test_the_loss_is_that_of_boxes_or_of_keypoints_whichever_is_larger() -> None:
    def score(ap50: float, keypoint_ap50: float | None = None) -> Metrics:
        keypoints = None if keypoint_ap50 is None else KeypointMetrics(0, keypoint_ap50, 0)
        return Metrics(0, ap50, 0, None, None, None, {}, keypoints)

    assert precision._measure_loss(score(90), score(88)) == 2
    assert precision._measure_loss(score(90, 80), score(88, 75)) == 5
    assert precision._measure_loss(score(90, 80), score(88, 79)) == 2


def test_layers_without_an_integer_kernel_are_named(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(shapes, tmp_path, neck="deformable")
    network = build_network(config, 3)
    spread_activations(network)
    Checkpoint(config, LABELS, (1, 2, 3), network.state_dict(), 0, "0").save(tmp_path / "best.pt")
    path, report = tmp_path / "model.onnx", tmp_path / "report.json"
    arguments = ["--precision", "int8", "--max-ap50-loss", "100", "--report", str(report)]
    main(["export", str(tmp_path / "best.pt"), str(path), *arguments])
    graph = onnx.load(path).graph
    names = [node.name for node in graph.node if node.op_type in ("ConvTranspose", "DeformConv")]
    assert len(names) == 6
    assert set(json.loads(report.read_text())["float_layers"]) == set(names)
    assert f"layers kept in float32: {', '.join(names)}" in capsys.readouterr().out


def test_layers_are_kept_in_float_until_the_loss_is_allowed(
    proto: onnx.ModelProto,
    exact: Detector,
    before: Metrics,
    self_labelled: Dataset,
    quantizer: Quantizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([3.0, 2.0, 0.5, 1.5, 0.5, 0.5, 0.5])  # of trials, each followed by validation if it passes
    monkeypatch.setattr(precision, "_measure_loss", lambda before, after: next(losses))
    monkeypatch.setattr(precision, "Quantizer", lambda proto, canvases: quantizer)
    monkeypatch.setattr(quantizer, "rank_layers", lambda: quantizer.layers[::-1])
    reduced = reduce_precision(
        proto, exact, before, self_labelled, PrecisionTarget("int8", 1.0, self_labelled), Console(quiet=True)
    )
    assert reduced.comparison.float_layers == tuple(quantizer.layers[:-5:-1])
    floats = {node.name for node in reduced.proto.graph.node if is_float_layer(node)}
    assert floats == {node.name for node in find_logit_layers(fold_constants(proto).graph)} | set(quantizer.layers[-4:])


def test_operators_that_only_float_layers_consume_are_float(quantizer: Quantizer) -> None:
    *others, last = quantizer.layers
    graph = quantizer.build(others).graph
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 2  # input and output of the last layer
    assert {node.name for node in graph.node if node.op_type == "Conv" and not is_float_layer(node)} == {last}
    assert find_normalisation(graph)  # the first layer takes normalised floats again


def is_float_layer(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and not node.input[1].endswith("_DequantizeLinear_Output")


def test_convolutions_and_additions_are_computed_in_integers(quantizer: Quantizer, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4  # suppresses the warning that the file is specific to this machine
    ort.InferenceSession(quantizer.build().SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == len(quantizer.layers)
    assert kinds.count("Conv") == 1  # the heatmap's last
    assert "QuantizeLinear" not in kinds  # not even for the pixels, which are bytes already
    assert not {"Clip", "Relu"} & set(kinds)  # fused into the convolutions
    some = quantizer.layers[:2]
    assert {node.name for node in quantizer.build(some).graph.node if is_float_layer(node)} >= set(some)


def test_layer_with_an_outlier_channel_is_first_to_stay_in_float(proto: onnx.ModelProto) -> None:
    wild = onnx.ModelProto()
    wild.CopyFrom(proto)
    for tensor in wild.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name == "network.heatmap_head.0.bias":
            values[0] = 3000.0  # unused, but it shares the quantisation range with the other seven channels
        elif tensor.name == "network.heatmap_head.2.weight":
            values[:, 0] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    [first] = [node.name for node in fold_constants(wild).graph.node if "network.heatmap_head.0.weight" in node.input]
    assert Quantizer(wild, draw_canvases()).rank_layers()[0] == first


def test_sums_of_two_neighbouring_products_fit_16_bits(quantizer: Quantizer) -> None:
    graph = quantizer.build().graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = [values.astype(int) for values in constants.values() if values.dtype == np.int8 and values.ndim == 4]
    assert len(weights) == len(quantizer.layers)
    assert max(np.abs(values).max() for values in weights) == 127
    for values in weights:
        if values.shape[1] > 1:
            row = values.transpose(0, 2, 3, 1).reshape(len(values), -1)
            assert 255 * np.abs(row[:, 1:] + row[:, :-1]).max() < 2**15


def test_bias_correction_removes_the_shift_of_weight_rounding(
    proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = onnx.ModelProto()
    rounded.CopyFrom(proto)
    for tensor in rounded.graph.initializer:
        if "_head.0.weight" in tensor.name:
            values = np.full(numpy_helper.to_array(tensor).shape, 0.49 / 127, np.float32)  # rounds to 0
            values[:, :, 1, 1] = np.eye(8)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    canvases = draw_canvases()
    quantizer = Quantizer(rounded, canvases)
    maps = [node.output[0] for node in find_logit_layers(fold_constants(rounded).graph)]

    def measure_shift() -> float:
        pairs = zip(
            capture_tensors(quantizer.build(), maps, canvases), capture_tensors(rounded, maps, canvases), strict=True
        )
        return sum(float(np.abs((np.stack(a) - np.stack(b)).mean((0, 1, 3, 4))).sum() / np.std(b)) for a, b in pairs)

    corrected = measure_shift()
    monkeypatch.setattr(quantizer, "_correct_biases", lambda graph: None)
    assert corrected < measure_shift() / 2


def test_fp16_model_computes_boxes_in_float32(proto: onnx.ModelProto) -> None:
    halved = convert_to_fp16(proto)
    onnx.checker.check_model(halved, full_check=True)
    types = {
        each.name: each.type.tensor_type.elem_type
        for each in onnx.shape_inference.infer_shapes(halved).graph.value_info
    }
    constants = {each.name: each.data_type for each in halved.graph.initializer}
    exact = find_full_precision_nodes(fold_constants(proto).graph)
    assert len(exact) > 30
    assert TensorProto.FLOAT16 in types.values()
    for node in halved.graph.node:
        if node.name in {each.name for each in exact}:
            assert TensorProto.FLOAT16 not in {(types | constants).get(name) for name in (*node.input, *node.output)}


def test_deformable_keypoint_network_with_a_stem_of_stride_1_can_be_converted() -> None:
    torch.manual_seed(0)
    network = CenterNet("resnet18", class_count=3, neck_width=8, head_width=8, neck="deformable", joint_count=2)
    network.backbone.conv1.stride = (1, 1)  # as DLA's
    spread_activations(network)
    proto, canvases = build_onnx(network), draw_canvases(2)
    names = [node.output[0] for node in find_logit_layers(fold_constants(proto).graph)]
    assert len(names) == 2  # logits of objects and of keypoints
    expected = capture_tensors(fold_constants(proto), names, canvases)
    for lowered, most in ((convert_to_fp16(proto), 0.05), (Quantizer(proto, canvases).build(), 0.5)):
        for ones, others in zip(capture_tensors(lowered, names, canvases), expected, strict=True):
            assert np.abs(np.stack(ones) - np.stack(others)).mean() < most * np.stack(others).std()


def test_report_needs_a_lower_precision(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "none.pt", "none.onnx", "--report", "report.json"])
    assert "--report compares precisions: it needs --precision" in capsys.readouterr().err

"""Converts models to fp16 or int8, compares them with float32, and rejects them if they lose too much AP50."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from model.detector import Detections, Detector
from model.errors import UserError
from model.network.graph import save_onnx
from training.datasets.dataset import Dataset
from training.environment import name_processor
from training.evaluation.compare import time_interleaved
from training.evaluation.evaluate import detect_with_model
from training.evaluation.metrics import Metrics, measure
from training.export.half import convert_to_fp16
from training.export.quantize import UNQUANTIZED_LAYERS, Quantizer

_CALIBRATION_PHOTOS = 128
_TRIAL_PHOTOS = 256
_TIMED_PHOTOS = 30


class PrecisionLoss(UserError):
    """The model of lower precision loses too much AP50; the message says how much."""


@dataclasses.dataclass(frozen=True)
class PrecisionTarget:
    """The precision to convert a model to.

    `max_ap50_loss` is in points of AP50 on the validation photos, for boxes and for keypoints. int8 needs photos of
    `train_set` for calibration and for choosing the layers that stay in float32.
    """

    precision: Literal["fp16", "int8"]
    max_ap50_loss: float
    train_set: Dataset | None = None


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """Accuracy, speed and size of one model. Milliseconds are per photo, on one CPU thread."""

    precision: str
    ap: float
    ap50: float
    keypoint_ap50: float | None
    milliseconds: float
    megabytes: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model before and after conversion to a lower precision."""

    model: str
    photos: int  # number of photos that AP was measured on
    processor: str
    before: ModelResult
    after: ModelResult
    ap50_loss: float
    max_ap50_loss: float
    speedup: float
    float_layers: tuple[str, ...]  # node names, without the heatmaps' last layers, which are always float32

    def print(self, console: Console) -> None:
        """Prints both results side by side, and the layers that stay in float32."""
        table = Table("", "AP", "AP50", "keypoint AP50", "ms/photo", "MB", caption=f"one thread of {self.processor}")
        for each in (self.before, self.after):
            keypoint_ap50 = "-" if each.keypoint_ap50 is None else f"{each.keypoint_ap50:.2f}"
            row = (
                f"{each.ap:.2f}",
                f"{each.ap50:.2f}",
                keypoint_ap50,
                f"{each.milliseconds:.1f}",
                f"{each.megabytes:.1f}",
            )
            table.add_row(each.precision, *row)
        console.print(table)
        kept = ", ".join(self.float_layers) or "only the heatmaps' last"
        console.print(f"{self.speedup:.2f} times as fast; layers kept in float32: {kept}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class ReducedModel:
    """A graph of lower precision, its detections in each validation photo, and the comparison with float32."""

    proto: onnx.ModelProto
    detections: list[Detections]
    metrics: Metrics
    comparison: Comparison


def reduce_precision(
    proto: onnx.ModelProto,
    detector: Detector,
    before: Metrics,
    dataset: Dataset,
    target: PrecisionTarget,
    console: Console,
) -> ReducedModel:
    """Converts the float32 graph `proto`, which `detector` runs and whose metrics on `dataset` are `before`.

    Raises `PrecisionLoss` if every candidate loses more AP50 than allowed.
    """
    metadata = dataclasses.replace(detector.metadata, precision=target.precision)
    trial_set = None if target.train_set is None else _sample_photos(target.train_set, _TRIAL_PHOTOS, 1)
    smallest_loss = np.inf
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reduced.onnx")
        before_trial = None
        for reduced, float_layers in _generate_candidates(proto, detector, target):
            save_onnx(reduced, metadata, path)
            candidate = Detector(path, "cpu")
            if target.precision == "int8":  # fp16 has a single candidate
                assert trial_set is not None
                before_trial = before_trial or measure(trial_set, detect_with_model(detector, trial_set, console))
                loss = _measure_loss(before_trial, measure(trial_set, detect_with_model(candidate, trial_set, console)))
                console.print(
                    f"{loss:.2f} AP50 lost on {len(trial_set.photos)} training photos, with {len(float_layers)} layers"
                    " in float32 besides the heatmaps' last",
                    soft_wrap=True,
                )
                if loss > target.max_ap50_loss:
                    smallest_loss = min(smallest_loss, loss)
                    continue
            found = detect_with_model(candidate, dataset, console)
            after = measure(dataset, found)
            loss = _measure_loss(before, after)
            if loss > target.max_ap50_loss:
                smallest_loss = min(smallest_loss, loss)
                continue
            comparison = _compare(detector, candidate, before, after, dataset, target, float_layers)
            return ReducedModel(reduced, found, after, comparison)
    raise PrecisionLoss(
        f"{target.precision} loses at least {smallest_loss:.2f} AP50, more than the {target.max_ap50_loss:g} allowed:"
        " raise --max-ap50-loss, or export with --precision fp32"
    )


def _generate_candidates(
    proto: onnx.ModelProto, detector: Detector, target: PrecisionTarget
) -> Iterator[tuple[onnx.ModelProto, tuple[str, ...]]]:
    """Yields candidate graphs, fastest first, each with its layers in float32 besides the heatmaps' last."""
    if target.precision == "fp16":
        yield convert_to_fp16(proto), _name_layers(proto, ("DeformConv",))
        return
    assert target.train_set is not None
    photos = _sample_photos(target.train_set, _CALIBRATION_PHOTOS, 0).photos
    quantizer = Quantizer(proto, [detector.prepare(photo.path.read_bytes()).pixels for photo in photos])
    always = _name_layers(proto, UNQUANTIZED_LAYERS)
    yield quantizer.build(), always
    ranked = quantizer.rank_layers()
    count = 1
    while count < len(ranked):
        yield quantizer.build(ranked[:count]), (*always, *ranked[:count])
        count *= 2


def _name_layers(proto: onnx.ModelProto, operators: Sequence[str]) -> tuple[str, ...]:
    return tuple(node.name for node in proto.graph.node if node.op_type in operators)


def _sample_photos(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Returns the data set with a random sample of at most `count` of its photos."""
    order = np.random.default_rng(seed).permutation(len(dataset.photos))[:count]
    return dataclasses.replace(dataset, photos=tuple(dataset.photos[index] for index in order))


def _measure_loss(before: Metrics, after: Metrics) -> float:
    """Returns the loss in points of AP50, of boxes or of keypoints, whichever is larger."""
    lost = before.ap50 - after.ap50
    if before.keypoints and after.keypoints:
        lost = max(lost, before.keypoints.ap50 - after.keypoints.ap50)
    return lost


def _compare(
    detector: Detector,
    candidate: Detector,
    before: Metrics,
    after: Metrics,
    dataset: Dataset,
    target: PrecisionTarget,
    float_layers: tuple[str, ...],
) -> Comparison:
    timed = [Detector(path, "cpu", threads=1) for path in (detector.path, candidate.path)]
    milliseconds = time_interleaved(timed, dataset.photos[:_TIMED_PHOTOS])
    before_result, after_result = (
        ModelResult(
            precision=precision,
            ap=round(metrics.ap, 2),
            ap50=round(metrics.ap50, 2),
            keypoint_ap50=round(metrics.keypoints.ap50, 2) if metrics.keypoints else None,
            milliseconds=round(taken, 2),
            megabytes=round(path.stat().st_size / 1e6, 2),
        )
        for precision, metrics, taken, path in (
            ("fp32", before, milliseconds[0], detector.path),
            (target.precision, after, milliseconds[1], candidate.path),
        )
    )
    return Comparison(
        model=detector.metadata.name,
        photos=len(dataset.photos),
        processor=name_processor(),
        before=before_result,
        after=after_result,
        ap50_loss=round(_measure_loss(before, after), 2),
        max_ap50_loss=target.max_ap50_loss,
        speedup=round(milliseconds[0] / milliseconds[1], 2),
        float_layers=float_layers,
    )

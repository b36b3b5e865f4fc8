"""Models of lower precision: made, measured beside the float32 one, and refused where they lose too much."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from model.detector import Detections, Detector
from model.graph import save_onnx
from training.compare import time_in_turn
from training.datasets.dataset import Dataset
from training.environment import name_processor
from training.evaluate import detect_with_model
from training.half import convert_to_fp16
from training.metrics import Metrics, measure
from training.quantize import Quantizer

_CALIBRATION_PHOTOS = 128
_TRIAL_PHOTOS = 256
_TIMED_PHOTOS = 30


class PrecisionLoss(Exception):
    """The model of lower precision finds less than it must; the message says how much."""


@dataclasses.dataclass(frozen=True)
class Lowering:
    """How exactly a model is to compute.

    `max_ap50_loss` is in points of AP50 on the validation photos, of the joints too where the model knows any. int8 is
    calibrated on photos of `train_set`, and by photos of it are chosen what layers stay in float32.
    """

    precision: Literal["fp16", "int8"]
    max_ap50_loss: float
    train_set: Dataset


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one model reaches. Milliseconds are of one photo with one thread of the CPU."""

    precision: str
    ap: float
    ap50: float
    keypoint_ap50: float | None
    milliseconds: float
    megabytes: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model before and after its precision was lowered."""

    model: str
    photos: int  # that AP was measured on
    processor: str
    before: Figures
    after: Figures
    ap50_loss: float
    max_ap50_loss: float
    speedup: float
    float_layers: tuple[str, ...]  # besides the heatmaps' last ones; by their names in the graph

    def print(self, console: Console) -> None:
        """Prints the figures of both side by side, and what stays in float32."""
        table = Table("", "AP", "AP50", "keypoint AP50", "ms a photo", "MB", caption=f"one thread of {self.processor}")
        for each in (self.before, self.after):
            joints = "-" if each.keypoint_ap50 is None else f"{each.keypoint_ap50:.2f}"
            row = (f"{each.ap:.2f}", f"{each.ap50:.2f}", joints, f"{each.milliseconds:.1f}", f"{each.megabytes:.1f}")
            table.add_row(each.precision, *row)
        console.print(table)
        kept = ", ".join(self.float_layers) or "none but the heatmaps' last"
        console.print(f"{self.speedup:.2f} times as fast; layers kept in float32: {kept}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A graph of lower precision, what it finds in each validation photo, and how that compares."""

    proto: onnx.ModelProto
    found: list[Detections]
    metrics: Metrics
    comparison: Comparison


def lower(
    proto: onnx.ModelProto, detector: Detector, before: Metrics, dataset: Dataset, lowering: Lowering, console: Console
) -> Lowered:
    """Lowers the precision of `proto`, which `detector` runs and which reaches `before` on `dataset`.

    Raises `PrecisionLoss` where each graph that was tried loses more than it may.
    """
    metadata = dataclasses.replace(detector.metadata, precision=lowering.precision)
    trial_set = _sample_photos(lowering.train_set, _TRIAL_PHOTOS, 1)
    least_loss = np.inf
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lowered.onnx")
        before_trial = None
        for lowered, float_layers in _try_in_turn(proto, detector, lowering):
            save_onnx(lowered, metadata, path)
            candidate = Detector(path, "cpu")
            if lowering.precision == "int8":  # only here is there anything to choose
                before_trial = before_trial or measure(trial_set, detect_with_model(detector, trial_set, console))
                loss = _measure_loss(before_trial, measure(trial_set, detect_with_model(candidate, trial_set, console)))
                console.print(
                    f"{loss:.2f} AP50 lost on {len(trial_set.photos)} training photos with {len(float_layers)} layers"
                    " more in float32 than the heatmaps' last",
                    soft_wrap=True,
                )
                if loss > lowering.max_ap50_loss:
                    least_loss = min(least_loss, loss)
                    continue
            found = detect_with_model(candidate, dataset, console)
            after = measure(dataset, found)
            loss = _measure_loss(before, after)
            if loss > lowering.max_ap50_loss:
                least_loss = min(least_loss, loss)
                continue
            comparison = _compare(detector, candidate, before, after, dataset, lowering, float_layers)
            return Lowered(lowered, found, after, comparison)
    raise PrecisionLoss(
        f"{lowering.precision} loses {least_loss:.2f} AP50 at least, more than the {lowering.max_ap50_loss:g} that it"
        " may: allow more with --max-ap50-loss, or export with --precision fp32"
    )


def _try_in_turn(
    proto: onnx.ModelProto, detector: Detector, lowering: Lowering
) -> Iterator[tuple[onnx.ModelProto, tuple[str, ...]]]:
    """Graphs to try, the fastest first, each with its layers in float32 besides the heatmaps' last."""
    if lowering.precision == "fp16":
        yield convert_to_fp16(proto), ()
        return
    photos = _sample_photos(lowering.train_set, _CALIBRATION_PHOTOS, 0).photos
    quantizer = Quantizer(proto, [detector.prepare(photo.path.read_bytes()).pixels for photo in photos])
    yield quantizer.build(), ()
    ranked = quantizer.rank_layers()
    count = 1
    while count < len(ranked):
        yield quantizer.build(ranked[:count]), tuple(ranked[:count])
        count *= 2


def _sample_photos(dataset: Dataset, count: int, seed: int) -> Dataset:
    """The data set with `count` of its photos, or all where there are fewer, in an order drawn from `seed`."""
    order = np.random.default_rng(seed).permutation(len(dataset.photos))[:count]
    return dataclasses.replace(dataset, photos=tuple(dataset.photos[index] for index in order))


def _measure_loss(before: Metrics, after: Metrics) -> float:
    """Points of AP50, of boxes or joints, whichever lose more."""
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
    lowering: Lowering,
    float_layers: tuple[str, ...],
) -> Comparison:
    timed = [Detector(path, "cpu", threads=1) for path in (detector.path, candidate.path)]
    milliseconds = time_in_turn(timed, dataset.photos[:_TIMED_PHOTOS])
    before_figures, after_figures = (
        Figures(
            precision=precision,
            ap=round(metrics.ap, 2),
            ap50=round(metrics.ap50, 2),
            keypoint_ap50=round(metrics.keypoints.ap50, 2) if metrics.keypoints else None,
            milliseconds=round(taken, 2),
            megabytes=round(path.stat().st_size / 1e6, 2),
        )
        for precision, metrics, taken, path in (
            ("fp32", before, milliseconds[0], detector.path),
            (lowering.precision, after, milliseconds[1], candidate.path),
        )
    )
    return Comparison(
        model=detector.metadata.name,
        photos=len(dataset.photos),
        processor=name_processor(),
        before=before_figures,
        after=after_figures,
        ap50_loss=round(_measure_loss(before, after), 2),
        max_ap50_loss=lowering.max_ap50_loss,
        speedup=round(milliseconds[0] / milliseconds[1], 2),
        float_layers=float_layers,
    )

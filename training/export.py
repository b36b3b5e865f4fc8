"""Checkpoint → the one ONNX file, written only if it does what the network does, or loses no more than it may."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from model.codec import decode
from model.detector import Detections, Detector
from model.graph import build_onnx, save_onnx
from model.metadata import Metadata
from model.network import CenterNet
from training.calibration import Evidence, fit_scaling, measure_gain
from training.checkpoint import Checkpoint
from training.config import make_config
from training.datasets.dataset import Dataset
from training.diagnosis import diagnose
from training.evaluate import detect_with_checkpoint, detect_with_model, split_batch
from training.files import write_json
from training.metrics import Metrics, measure
from training.overlap import box_iou
from training.precision import Lowering, lower

_PHOTOS = 32
_LEAST_SCORE = 0.05  # below it a detection means nothing, and which ones make the top k is a matter of rounding
_SCORE_TOLERANCE = 1e-3
_BOX_TOLERANCE = 0.25  # input pixels
_SHARE_OF_JOINTS = 0.9
_TIE_OVERLAP = 0.5  # IoU of boxes that two neighbouring cells give one object
_SHARE_OF_TIES = 0.02


class ParityFailure(Exception):
    """The exported graph does not find what the network finds; the message gives the first difference."""


def export(
    checkpoint: Checkpoint,
    dataset: Dataset,
    path: Path,
    console: Console,
    lowering: Lowering | None = None,
    report: Path | None = None,
    input_size: int = 0,
) -> Metrics:
    """Writes `path` with scores calibrated and the graph checked on `dataset`, and with the AP that it reaches there.

    `input_size` is pixels of the square that photos are fitted into, 0: the checkpoint's configuration's. Without a
    `lowering` it computes as the network does; with one it is compared with that graph, and `report` is where the
    comparison goes as JSON. Raises `InvalidConfig`, `ParityFailure` or `PrecisionLoss`, and then writes nothing.
    """
    network, config = checkpoint.build_network(), checkpoint.config
    if input_size:
        config = make_config(config.model_dump() | {"input_size": input_size})
    size = config.input_size
    _calibrate(network, checkpoint, dataset, size, console)
    metadata = Metadata(
        name=path.stem,
        labels=checkpoint.labels,
        label_ids=checkpoint.label_ids,
        input_height=size,
        input_width=size,
        stride=network.stride,
        precision="fp32",
        dataset=config.dataset,
        ap=None,
        ap50=None,
        git_commit=checkpoint.git_commit,
        skeleton=checkpoint.skeleton,
        size_step=network.size_step,
        recipe=config.recipe,
    )
    proto = build_onnx(network)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        save_onnx(proto, metadata, temporary)
        detector = Detector(temporary, "cpu")
        checked = check_parity(network, detector, dataset)
        console.print(f"the graph finds what the network finds in {checked} photos")
        found = detect_with_model(detector, dataset, console)
        metrics = measure(dataset, found)
        if lowering:
            lowered = lower(proto, detector, metrics, dataset, lowering, console)
            proto, found, metrics = lowered.proto, lowered.found, lowered.metrics
            metadata = dataclasses.replace(metadata, precision=lowering.precision)
            lowered.comparison.print(console)
            if report:
                write_json(report, dataclasses.asdict(lowered.comparison))
                console.print(f"wrote {report}")
        threshold = diagnose(dataset, found).threshold
        keypoint_ap = round(metrics.keypoints.ap, 2) if metrics.keypoints else None
        ap, ap50 = round(metrics.ap, 2), round(metrics.ap50, 2)
        metadata = dataclasses.replace(metadata, ap=ap, ap50=ap50, keypoint_ap=keypoint_ap, threshold=threshold)
        save_onnx(proto, metadata, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    metrics.print(console)
    console.print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    return metrics


def _calibrate(network: CenterNet, checkpoint: Checkpoint, dataset: Dataset, size: int, console: Console) -> None:
    """Scales the network's scores so that they say how often they are right on `dataset`."""
    evidence = Evidence.collect(dataset, detect_with_checkpoint(checkpoint, network, dataset, size, console))
    scaling = fit_scaling(evidence)
    if scaling is None:
        console.print("scores are not calibrated: the validation photos show too few hits and false alarms")
        return
    scaling.fold_into(network)
    gain = measure_gain(evidence)
    errors = f": expected calibration error {gain[0]:.1%} before, {gain[1]:.1%} after" if gain else ""
    console.print(f"scores are calibrated (logits x {scaling.slope:.2f} + {scaling.intercept:.2f}){errors}")


@torch.inference_mode()
def check_parity(network: CenterNet, detector: Detector, dataset: Dataset) -> int:
    """Compares network and graph on up to 32 photos, as sets, since near-ties reorder; returns how many were compared.

    Which of two neighbouring cells is the peak may be a near-tie too: few detections may lie where the other says the
    same of the cell beside. Raises `ParityFailure` at the first detection of either that has no partner in the other.
    """
    photos = dataset.photos[:_PHOTOS]
    compared = tied = 0
    for photo in photos:
        canvas = detector.prepare(photo.path.read_bytes()).pixels
        [expected] = split_batch(decode(network(torch.from_numpy(canvas[None])), stride=network.stride))
        [found] = detector.infer([canvas])
        for one, other, verb in ((expected, found, "misses"), (found, expected, "invents")):
            lonely = _without_partner(one, other)
            compared += int((one.scores > _LEAST_SCORE).sum())
            tied += int(lonely.sum())
            faulty = lonely & ~_is_tied(one, other)
            if faulty.any() or tied > 2 + _SHARE_OF_TIES * compared:
                row = int((faulty if faulty.any() else lonely).argmax())
                raise ParityFailure(
                    f"{photo.path}: the graph {verb} {detector.metadata.labels[one.labels[row]]}"
                    f" {one.scores[row]:.4f} at {one.boxes_xyxy[row].round(2).tolist()}"
                )
    return len(photos)


def _without_partner(one: Detections, other: Detections) -> NDArray[np.bool_]:
    """(N,): which detections of `one` that count have no equal in `other`."""
    same_box = np.abs(one.boxes_xyxy[:, None] - other.boxes_xyxy).max(-1) <= _BOX_TOLERANCE
    is_same = _say_the_same(one, other) & same_box
    if one.keypoints is not None and other.keypoints is not None:
        # a joint between two peaks may go to either; what counts is where most of them are
        apart = np.abs(one.keypoints[:, None] - other.keypoints)[..., :2].max(-1)  # (N, M, J)
        is_same &= (apart <= _BOX_TOLERANCE).mean(-1) >= _SHARE_OF_JOINTS
    has_partner = is_same.any(1)
    return np.asarray((one.scores > _LEAST_SCORE) & ~has_partner, np.bool_)


def _is_tied(one: Detections, other: Detections) -> NDArray[np.bool_]:
    """(N,): which detections of `one` have a match of the same score in `other` that overlaps them."""
    overlaps = box_iou(one.boxes_xyxy, other.boxes_xyxy) >= _TIE_OVERLAP
    return np.asarray((_say_the_same(one, other) & overlaps).any(1), np.bool_)


def _say_the_same(one: Detections, other: Detections) -> NDArray[np.bool_]:
    """(N, M): which have the same label and score."""
    same_score = np.abs(one.scores[:, None] - other.scores) <= _SCORE_TOLERANCE
    return np.asarray((one.labels[:, None] == other.labels) & same_score, np.bool_)

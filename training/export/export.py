"""Exports a checkpoint to one ONNX file, after a parity check and, in lower precision, a check of the AP50 loss."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from model.detector import Detections, Detector
from model.errors import UserError
from model.metadata import Metadata
from model.network.centernet import CenterNet
from model.network.codec import decode
from model.network.graph import build_onnx, save_onnx
from training.config_file import make_config
from training.datasets.dataset import Dataset
from training.evaluation.calibration import ScoredDetections, cross_validate, fit_platt_scaling
from training.evaluation.diagnosis import diagnose
from training.evaluation.evaluate import detect_with_checkpoint, detect_with_model, split_batch
from training.evaluation.metrics import Metrics, measure
from training.evaluation.overlap import box_iou
from training.export.precision import PrecisionTarget, reduce_precision
from training.files import replacing, write_json
from training.weights.checkpoint import Checkpoint

_PHOTOS = 32
_MIN_SCORE = 0.05  # lower scores are meaningless, and rounding decides which of them are among the top k
_SCORE_TOLERANCE = 1e-3
_BOX_TOLERANCE = 0.25  # input pixels
_MIN_KEYPOINT_SHARE = 0.9  # of a detection's keypoints, which must agree
_TIE_OVERLAP = 0.5  # IoU of boxes from neighbouring cells of one object
_MAX_TIE_SHARE = 0.02  # of the compared detections


class ParityFailure(UserError):
    """The exported graph's detections differ from the network's; the message gives the first difference."""


def export(
    checkpoint: Checkpoint,
    dataset: Dataset,
    path: Path,
    console: Console,
    target: PrecisionTarget | None = None,
    report: Path | None = None,
    input_size: int = 0,
) -> Metrics:
    """Exports `checkpoint` to `path`: calibrates scores, checks the graph and measures its AP, all on `dataset`.

    `input_size` is the side of the square input in pixels, 0 for the checkpoint's own. With a `target` the graph is
    converted to its precision and compared with the float32 graph; `report` is a file for the comparison as JSON.
    Raises `InvalidConfig`, `ParityFailure` or `PrecisionLoss`, and then writes nothing.
    """
    network, config = checkpoint.build_network(), checkpoint.config
    size = make_config(config.model_dump() | {"input_size": input_size or config.input_size}).input_size
    console.print(f"measuring on {len(dataset.photos)} photos of {dataset.annotations_path}", soft_wrap=True)
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
    with replacing(path) as temporary:
        save_onnx(proto, metadata, temporary)
        detector = Detector(temporary, "cpu")
        checked = check_parity(network, detector, dataset)
        console.print(f"parity check: the ONNX graph matches the network on {checked} photos")
        found = detect_with_model(detector, dataset, console)
        metrics = measure(dataset, found)
        if target:
            reduced = reduce_precision(proto, detector, metrics, dataset, target, console)
            proto, found, metrics = reduced.proto, reduced.detections, reduced.metrics
            metadata = dataclasses.replace(metadata, precision=target.precision)
            reduced.comparison.print(console)
            if report:
                write_json(report, dataclasses.asdict(reduced.comparison))
                console.print(f"wrote {report}")
        threshold = diagnose(dataset, found).threshold
        keypoint_ap = round(metrics.keypoints.ap, 2) if metrics.keypoints else None
        ap, ap50 = round(metrics.ap, 2), round(metrics.ap50, 2)
        metadata = dataclasses.replace(metadata, ap=ap, ap50=ap50, keypoint_ap=keypoint_ap, threshold=threshold)
        save_onnx(proto, metadata, temporary)
    metrics.print(console)
    metrics.print_undetected(path.stem, checkpoint.labels, console)
    console.print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    return metrics


def _calibrate(network: CenterNet, checkpoint: Checkpoint, dataset: Dataset, size: int, console: Console) -> None:
    """Calibrates the network's scores on `dataset` by Platt scaling, in place."""
    found = detect_with_checkpoint(checkpoint, network, dataset, size, console)
    detections = ScoredDetections.collect(dataset, found)
    scaling = fit_platt_scaling(detections)
    if scaling is None:
        console.print("scores not calibrated: too few true or false positives in the validation photos")
        return
    scaling.fold_into(network)
    errors = cross_validate(detections)
    change = f": expected calibration error {errors[0]:.1%} before, {errors[1]:.1%} after" if errors else ""
    console.print(f"scores calibrated (logits x {scaling.slope:.2f} + {scaling.intercept:.2f}){change}")


@torch.inference_mode()
def check_parity(network: CenterNet, detector: Detector, dataset: Dataset) -> int:
    """Compares the detections of network and graph on up to 32 photos; returns the number of photos.

    Detections are compared as sets, since near-ties change their order. Rounding may also decide which of two
    neighbouring cells is the peak, so a few detections may match only an overlapping one of the same score. Raises
    `ParityFailure` at the first detection without a match.
    """
    photos = dataset.photos[:_PHOTOS]
    compared = tied = 0
    for photo in photos:
        canvas = detector.prepare(photo.path.read_bytes()).pixels
        [expected] = split_batch(decode(network(torch.from_numpy(canvas[None])), stride=network.stride))
        [found] = detector.infer([canvas])
        for one, other, verb in ((expected, found, "misses"), (found, expected, "adds")):
            unmatched = _find_unmatched(one, other)
            compared += int((one.scores > _MIN_SCORE).sum())
            tied += int(unmatched.sum())
            faulty = unmatched & ~_is_tied(one, other)
            if faulty.any() or tied > 2 + _MAX_TIE_SHARE * compared:
                row = int((faulty if faulty.any() else unmatched).argmax())
                raise ParityFailure(
                    f"{photo.path}: the graph {verb} {detector.metadata.labels[one.labels[row]]}"
                    f" {one.scores[row]:.4f} at {one.boxes_xyxy[row].round(2).tolist()}"
                )
    return len(photos)


def _find_unmatched(one: Detections, other: Detections) -> NDArray[np.bool_]:
    """Marks the detections of `one` above the score limit that have no equal in `other`: (N,)."""
    same_box = np.abs(one.boxes_xyxy[:, None] - other.boxes_xyxy).max(-1) <= _BOX_TOLERANCE
    is_same = _same_label_and_score(one, other) & same_box
    if one.keypoints is not None and other.keypoints is not None:
        # a keypoint between two peaks may snap to either, so only most of them must agree
        distances = np.abs(one.keypoints[:, None] - other.keypoints)[..., :2].max(-1)  # (N, M, J)
        is_same &= (distances <= _BOX_TOLERANCE).mean(-1) >= _MIN_KEYPOINT_SHARE
    return np.asarray((one.scores > _MIN_SCORE) & ~is_same.any(1), np.bool_)


def _is_tied(one: Detections, other: Detections) -> NDArray[np.bool_]:
    """Marks the detections of `one` that overlap one of the same label and score in `other`: (N,)."""
    overlaps = box_iou(one.boxes_xyxy, other.boxes_xyxy) >= _TIE_OVERLAP
    return np.asarray((_same_label_and_score(one, other) & overlaps).any(1), np.bool_)


def _same_label_and_score(one: Detections, other: Detections) -> NDArray[np.bool_]:
    """Compares each detection of `one` with each of `other`: (N, M)."""
    same_score = np.abs(one.scores[:, None] - other.scores) <= _SCORE_TOLERANCE
    return np.asarray((one.labels[:, None] == other.labels) & same_score, np.bool_)

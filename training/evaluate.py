"""Detections over a data set, by a network or by an exported model."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from model.backbones.backbone import Backbone
from model.cells import WholeMap
from model.codec import decode
from model.detector import Detections, Detector, move_to_photo
from model.heads import HeadMaps, KeypointMaps
from model.letterbox import place
from model.network import CenterNet
from model.skeleton import Skeleton
from training.checkpoint import Checkpoint
from training.datasets.dataset import Dataset, InvalidDataset
from training.loader import evaluation_batches, prepare_photo
from training.metrics import Metrics
from training.progress import progress_bar

_BATCH = 16
_SUBPIXELS = 64  # OpenCV's soft-NMS takes whole numbers
_LEAST_SCORE = 0.001


@dataclasses.dataclass(frozen=True)
class TestTime:
    """What may be done for a better figure at many times the cost; the paper's "flip" and "multi-scale" (section 6)."""

    __test__ = False  # for pytest, which takes it for a test

    flip: bool = False  # the mean with the mirrored picture, of heatmap and size
    scales: tuple[float, ...] = (1.0,)  # of the input's size; what several find is merged by soft-NMS
    soft_nms: bool = False  # even for one scale


def detect_with_network(
    network: nn.Module,
    dataset: Dataset,
    size: int,
    workers: int | None,
    console: Console,
    test_time: TestTime = TestTime(),  # it is frozen
    coarsest_stride: int = Backbone.coarsest_stride,
) -> list[Detections]:
    """Finds the objects of every photo by a `CenterNet` or an average of one, at `size` pixels in fp32.

    Scaled sizes are rounded to multiples of `coarsest_stride`, the network's backbone's.
    """
    sizes = [max(1, round(size * scale / coarsest_stride)) * coarsest_stride for scale in test_time.scales]
    found = [_detect_at(network, dataset, each, workers, console, test_time.flip) for each in sizes]
    if len(found) == 1 and not test_time.soft_nms:
        return found[0]
    return [soft_nms(of_photo) for of_photo in zip(*found, strict=True)]


def soft_nms(several: Sequence[Detections]) -> Detections:
    """Merges what was found in one photo: of boxes of one class, each lowers the scores of those that it overlaps.

    Source: arXiv 1704.04503, Gaussian with sigma 0.5.
    """
    every = _concatenate(several)
    merged = []
    for label in np.unique(every.labels):
        rows = np.flatnonzero(every.labels == label)
        corners = (every.boxes_xyxy[rows] * _SUBPIXELS).round().astype(int)
        rectangles = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
        scores = every.scores[rows].tolist()
        lowered, kept = cv2.dnn.softNMSBoxes(rectangles, scores, _LEAST_SCORE, _LEAST_SCORE, 0, 0.5)
        chosen = every.select(rows[np.asarray(kept, np.int64).reshape(-1)])
        merged.append(dataclasses.replace(chosen, scores=np.asarray(lowered, np.float32).reshape(-1)))
    whole = _concatenate(merged)
    best = whole.scores.argsort()[::-1][: max(len(found.scores) for found in several)]
    return whole.select(best)


def _concatenate(several: Sequence[Detections]) -> Detections:
    keypoints = [found.keypoints for found in several if found.keypoints is not None]
    return Detections(
        np.concatenate([found.boxes_xyxy for found in several]),
        np.concatenate([found.scores for found in several]),
        np.concatenate([found.labels for found in several]),
        np.concatenate(keypoints) if keypoints else None,
    )


@torch.inference_mode()
def _detect_at(
    network: nn.Module, dataset: Dataset, size: int, workers: int | None, console: Console, flip: bool
) -> list[Detections]:
    network.eval()
    mirrored = dataset.skeleton.mirrored
    device = next(network.parameters()).device
    photos = iter(dataset.photos)
    results = []
    with progress_bar(console, "evaluate", len(dataset.photos)) as advance:
        for images in evaluation_batches(dataset, size, _BATCH, workers, device):
            images = images.to(device)
            maps = _average_mirrored(network, images, mirrored) if flip else network(images)
            detections = decode(maps, stride=size // maps.heatmap.shape[2])
            outputs = [each.cpu().numpy() for each in detections if each is not None]
            # photos come last, so that none is taken from the iterator when the batch is at its end
            for *rows, photo in zip(*outputs, photos, strict=False):
                found = Detections(*rows)
                results.append(move_to_photo(found, place(photo.width, photo.height, [(size, size)])))
                advance(pictures=1)
    return results


def _average_mirrored(network: nn.Module, images: Tensor, mirrored: Sequence[int]) -> HeadMaps:
    one, other = network(images), network(images.flip(2))
    heatmap = _average_logits(one.heatmap, other.heatmap.flip(3))
    size = WholeMap((one.size.whole() + other.size.whole().flip(3)) / 2)
    keypoints = None
    if one.keypoints is not None:
        order = list(mirrored)
        there = other.keypoints.places.whole().flip(3).unflatten(1, (-1, 2))[:, order]
        # a joint as far left of its cell's right edge as it is right of the left one here
        there = torch.stack([1 - there[:, :, 0], there[:, :, 1]], dim=2).flatten(1, 2)
        keypoints = KeypointMaps(
            WholeMap((one.keypoints.places.whole() + there) / 2),
            _average_logits(one.keypoints.heatmap, other.keypoints.heatmap.flip(3)[:, order]),
            one.keypoints.offset,
        )
    return HeadMaps(heatmap, size, one.offset, keypoints)


def _average_logits(one: Tensor, other: Tensor) -> Tensor:
    return torch.logit((one.sigmoid() + other.sigmoid()) / 2, eps=1e-6)


def detect_with_model(detector: Detector, dataset: Dataset, console: Console) -> list[Detections]:
    """Finds the objects of every photo by an exported model, from the files' bytes: the way that serves.

    Raises `InvalidDataset` where the model knows a label that the data does not have, or other joints.
    """
    indices = _match_labels(detector.metadata.labels, detector.metadata.skeleton, dataset)
    results = []
    with progress_bar(console, f"evaluate {detector.metadata.name}", len(dataset.photos)) as advance:
        for photo in dataset.photos:
            canvas = prepare_photo(photo, detector.prepare)
            [found] = detector.infer([canvas.pixels])
            results.append(_relabel(move_to_photo(found, canvas.letterbox), indices))
            advance(pictures=1)
    return results


def detect_with_checkpoint(
    checkpoint: Checkpoint,
    network: CenterNet,
    dataset: Dataset,
    size: int,
    console: Console,
    test_time: TestTime = TestTime(),
) -> list[Detections]:
    """As `detect_with_network` by a checkpoint's `network`, whose labels are the data's only by name.

    Raises `InvalidDataset` where the checkpoint knows a label that the data does not have, or other joints.
    """
    indices = _match_labels(checkpoint.labels, checkpoint.skeleton, dataset)
    stride, workers = network.backbone.coarsest_stride, checkpoint.config.workers
    found = detect_with_network(network, dataset, size, workers, console, test_time, stride)
    return [_relabel(each, indices) for each in found]


def _match_labels(labels: Sequence[str], skeleton: Skeleton, dataset: Dataset) -> NDArray[np.int64]:
    """The data's index of each of a model's labels, by name: (C,).

    Raises `InvalidDataset` where the model knows a label that the data does not have, or other joints.
    """
    unknown = [label for label in labels if label not in dataset.labels]
    if unknown:
        raise InvalidDataset(f"{dataset.annotations_path}: has no category {', '.join(unknown)}, which the model finds")
    if skeleton.joints != dataset.skeleton.joints and dataset.skeleton.joints:
        raise InvalidDataset(f"{dataset.annotations_path}: names other joints than the model finds")
    return np.array([dataset.labels.index(label) for label in labels], np.int64)


def _relabel(found: Detections, indices: NDArray[np.int64]) -> Detections:
    """What was found, with the data's indices of the labels, as `_match_labels` has them."""
    return dataclasses.replace(found, labels=indices[found.labels])


def print_metrics(metrics: Metrics, console: Console) -> None:
    """A table of the whole and of every class."""
    table = Table("", "AP", "AP50", "AP75", "small", "medium", "large")
    sizes = (metrics.ap_small, metrics.ap_medium, metrics.ap_large)
    figures = [f"{v:.1f}" for v in (metrics.ap, metrics.ap50, metrics.ap75)]
    table.add_row("all", *figures, *("-" if v is None else f"{v:.1f}" for v in sizes), end_section=True)
    for label, (ap, ap50) in metrics.by_class.items():
        table.add_row(label, f"{ap:.1f}", f"{ap50:.1f}")
    console.print(table)
    if metrics.keypoints:
        joints = metrics.keypoints
        console.print(f"keypoints: AP {joints.ap:.1f}, AP50 {joints.ap50:.1f}, AP75 {joints.ap75:.1f}")


def write_metrics(metrics: Metrics, path: Path) -> None:
    """The same as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(metrics), indent=2) + "\n")

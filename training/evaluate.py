"""Detections over a data set, by a network or by an exported model."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from model import codec
from model.backbones.backbone import Backbone
from model.detector import Detections, Detector, move_to_photo
from model.letterbox import place
from model.network import CenterNet
from model.skeleton import Skeleton
from training.checkpoint import Checkpoint
from training.datasets.dataset import Dataset, InvalidDataset
from training.loader import evaluation_batches, prepare_photo
from training.progress import progress_bar
from training.test_time import AS_SERVED, TestTime, average_mirrored, soft_nms

_BATCH = 16


def detect_with_network(
    network: nn.Module,
    dataset: Dataset,
    size: int,
    workers: int | None,
    console: Console,
    test_time: TestTime = AS_SERVED,
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
            images = images.to(device, non_blocking=True)
            maps = average_mirrored(network, images, mirrored) if flip else network(images)
            batch = split_batch(codec.decode(maps, stride=size // maps.heatmap.shape[2]))
            # photos come last, so that none is taken from the iterator when the batch is at its end
            for found, photo in zip(batch, photos, strict=False):
                results.append(move_to_photo(found, place(photo.width, photo.height, [(size, size)])))
                advance(pictures=1)
    return results


def split_batch(found: codec.Detections) -> list[Detections]:
    """The best K peaks of B pictures, tensors of any device → B detections of K objects, arrays, in input pixels."""
    boxes, scores, labels = (each.cpu().numpy() for each in (found.boxes, found.scores, found.labels))
    keypoints = [None] * len(boxes) if found.keypoints is None else found.keypoints.cpu().numpy()
    return [
        Detections(boxes_xyxy=boxes[row], scores=scores[row], labels=labels[row], keypoints=keypoints[row])
        for row in range(len(boxes))
    ]


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
    test_time: TestTime = AS_SERVED,
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

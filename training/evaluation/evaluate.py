"""Runs a network or an exported model over a data set."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from model.detector import Detections, Detector, move_to_photo
from model.letterbox import place
from model.network.backbones.backbone import Backbone
from model.network.centernet import CenterNet
from model.network.codec import DecodedBatch, decode
from model.skeleton import Skeleton
from training.config import MIN_INPUT_SIZE
from training.datasets.dataset import Dataset, InvalidDataset
from training.evaluation.test_time_augmentation import (
    NO_AUGMENTATION,
    TestTimeAugmentation,
    forward_with_flip,
    soft_nms,
)
from training.loader import evaluation_batches, prepare_photo
from training.progress import progress_bar
from training.weights.checkpoint import Checkpoint

_BATCH = 16


def detect_with_network(
    network: nn.Module,
    dataset: Dataset,
    size: int,
    workers: int | None,
    console: Console,
    tta: TestTimeAugmentation = NO_AUGMENTATION,
    coarsest_stride: int = Backbone.coarsest_stride,
) -> list[Detections]:
    """Detects objects in every photo with a `CenterNet` or its average, at `size` pixels in fp32.

    `workers` are the loader's. Scaled sizes are at least `MIN_INPUT_SIZE`, and rounded to multiples of
    `coarsest_stride`, that of the backbone.
    """
    scaled = [max(size * scale, MIN_INPUT_SIZE) for scale in tta.scales]
    sizes = [max(1, round(each / coarsest_stride)) * coarsest_stride for each in scaled]
    by_size = [_detect_at(network, dataset, each, workers, console, tta.flip) for each in sizes]
    if len(by_size) == 1 and not tta.soft_nms:
        return by_size[0]
    return [soft_nms(of_photo) for of_photo in zip(*by_size, strict=True)]


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
            maps = forward_with_flip(network, images, mirrored) if flip else network(images)
            batch = split_batch(decode(maps, stride=size // maps.heatmap.shape[2]))
            # photos come second, so that zip takes none of them when the batch ends
            for found, photo in zip(batch, photos, strict=False):
                results.append(move_to_photo(found, place(photo.width, photo.height, [(size, size)])))
                advance(images=1)
    return results


def split_batch(found: DecodedBatch) -> list[Detections]:
    """Splits a batch of B images with K rows each into B `Detections` without padding (arrays, in input pixels)."""
    boxes, scores, labels = (each.cpu().numpy() for each in (found.boxes, found.scores, found.labels))
    keypoints = [None] * len(boxes) if found.keypoints is None else found.keypoints.cpu().numpy()
    return [
        Detections(boxes[row], scores[row], labels[row], keypoints[row]).without_padding() for row in range(len(boxes))
    ]


def detect_with_model(detector: Detector, dataset: Dataset, console: Console) -> list[Detections]:
    """Detects objects in every photo with an exported model, preprocessed as in serving.

    Raises `InvalidDataset` if the model has labels that the data lacks, or other keypoints.
    """
    indices = _match_labels(detector.metadata.labels, detector.metadata.skeleton, dataset)
    results = []
    with progress_bar(console, f"evaluate {detector.metadata.name}", len(dataset.photos)) as advance:
        for photo in dataset.photos:
            canvas = prepare_photo(photo, detector.prepare)
            [found] = detector.infer([canvas.pixels])
            results.append(_relabel(move_to_photo(found, canvas.letterbox), indices))
            advance(images=1)
    return results


def detect_with_checkpoint(
    checkpoint: Checkpoint,
    network: CenterNet,
    dataset: Dataset,
    size: int,
    console: Console,
    tta: TestTimeAugmentation = NO_AUGMENTATION,
) -> list[Detections]:
    """Runs `detect_with_network` with a checkpoint's `network`, and matches its labels with the data's by name.

    Raises `InvalidDataset` if the checkpoint has labels that the data lacks, or other keypoints.
    """
    indices = _match_labels(checkpoint.labels, checkpoint.skeleton, dataset)
    stride, workers = network.backbone.coarsest_stride, checkpoint.config.workers
    photos = dataclasses.replace(dataset, skeleton=checkpoint.skeleton)  # whose sides a mirrored image swaps
    found = detect_with_network(network, photos, size, workers, console, tta, stride)
    return [_relabel(each, indices) for each in found]


def _match_labels(labels: Sequence[str], skeleton: Skeleton, dataset: Dataset) -> NDArray[np.int64]:
    """Returns the data's index of each of a model's labels, by name: (C,).

    Raises `InvalidDataset` if the model has labels that the data lacks, or other keypoints.
    """
    unknown = [label for label in labels if label not in dataset.labels]
    if unknown:
        raise InvalidDataset(
            f"{dataset.annotations_path}: has no category {', '.join(unknown)}, which the model detects"
        )
    if skeleton.joints != dataset.skeleton.joints and dataset.skeleton.joints:
        raise InvalidDataset(f"{dataset.annotations_path}: has other keypoints than the model")
    return np.array([dataset.labels.index(label) for label in labels], np.int64)


def _relabel(found: Detections, indices: NDArray[np.int64]) -> Detections:
    """Replaces the model's label indices by the data's, as returned by `_match_labels`."""
    return dataclasses.replace(found, labels=indices[found.labels])

"""Weight averaging of several runs (model soups, arXiv 2203.05482): often better than each, at no inference cost."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.network.centernet import describe_backbone
from training.weights.checkpoint import Checkpoint, InvalidCheckpoint, load_checkpoint
from training.weights.pretrained import LABEL_OUTPUT

# cosine similarity of a layer in two checkpoints. Measured: at least 0.9 after twenty epochs at a high rate, and 0.8
# between default.pt and its ancestor of several runs before, but at most 0.12 if the random weights were others
_MIN_SIMILARITY = 0.25


def average_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """Averages weights and batch norm statistics; the rest of the checkpoint is the first one's.

    The runs must have started from the same weights, or the average is meaningless. Raises `InvalidCheckpoint` if
    labels, networks, or mean and std of the pixels differ, or if neck or heads started from other random weights.
    """
    checkpoints = [load_checkpoint(path) for path in paths]
    first = checkpoints[0]
    for path, other in zip(paths[1:], checkpoints[1:], strict=True):
        if (other.labels, other.skeleton) != (first.labels, first.skeleton):
            raise InvalidCheckpoint(
                f"{path} and {paths[0]} have different labels or keypoints: average runs on the same data set"
            )
        if _shapes(other) != _shapes(first):
            raise InvalidCheckpoint(
                f"{path} and {paths[0]} have different networks: average runs of the same configuration"
            )
        if _normalisation(other) != _normalisation(first):
            raise InvalidCheckpoint(f"{path} and {paths[0]} have different mean or std of the pixels")
        if unrelated := _find_unrelated(first, other):
            raise InvalidCheckpoint(
                f"{paths[0]} and {path}: neck and heads started from different random weights ({', '.join(unrelated)}),"
                " which have no meaningful average: start all runs from one checkpoint, trained on these labels, or"
                " give them the same seed"
            )
    weights = {key: _average([each.weights[key] for each in checkpoints]) for key in first.weights}
    return dataclasses.replace(first, weights=weights, ap=None, ap50=None, keypoint_ap=None, progress=None)


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in checkpoint.weights.items()}


def _find_unrelated(first: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns the layers of neck and heads whose weights point in unrelated directions."""
    convolutions = {
        key: value
        for key, value in first.weights.items()
        if value.dim() == 4 and not key.startswith("backbone.") and "conv_offset_mask" not in key  # starts at zero
    }
    return [
        key.removesuffix(".weight")
        for key, value in convolutions.items()
        if _compare(value, other.weights[key], bool(LABEL_OUTPUT.search(key))) < _MIN_SIMILARITY
    ]


def _compare(one: Tensor, other: Tensor, by_label: bool) -> float:
    """Returns the cosine similarity of a layer's weights; `by_label` that of the label with the lowest one.

    A label that the runs' checkpoint lacks starts from random weights beside others that do not.
    """
    outputs = len(one) if by_label else 1
    return torch.cosine_similarity(one.reshape(outputs, -1), other.reshape(outputs, -1)).min().item()


def _normalisation(checkpoint: Checkpoint) -> tuple[object, object]:
    backbone = describe_backbone(checkpoint.config.backbone)
    return checkpoint.config.mean or backbone.mean, checkpoint.config.std or backbone.std


def _average(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():  # a batch norm's num_batches_tracked
        return tensors[0]
    return torch.stack([each.double() for each in tensors]).mean(0).to(tensors[0].dtype)

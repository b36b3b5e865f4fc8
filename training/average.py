"""The mean of several runs' weights: often better than each of them, and no slower (model soups, arXiv 2203.05482)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.checkpoint import Checkpoint, InvalidCheckpoint, load_checkpoint


def average_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """One checkpoint with the mean of the weights and of the batch norms' statistics, all else as in the first one.

    They must have begun with the same weights: only then is the mean of what they learned something learned. Raises
    `InvalidCheckpoint` where they are of different networks or labels.
    """
    checkpoints = [load_checkpoint(path) for path in paths]
    first = checkpoints[0]
    for path, other in zip(paths[1:], checkpoints[1:], strict=True):
        if (other.labels, other.skeleton) != (first.labels, first.skeleton):
            raise InvalidCheckpoint(
                f"{path} and {paths[0]} know different labels or joints: average runs on one data set"
            )
        if _shapes(other) != _shapes(first):
            raise InvalidCheckpoint(
                f"{path} and {paths[0]} are of different networks: average runs of one configuration"
            )
    weights = {key: _mean([each.weights[key] for each in checkpoints]) for key in first.weights}
    return dataclasses.replace(first, weights=weights, ap=None, ap50=None, keypoint_ap=None, progress=None)


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in checkpoint.weights.items()}


def _mean(several: Sequence[Tensor]) -> Tensor:
    if not several[0].is_floating_point():  # a batch norm's count of batches
        return several[0]
    return torch.stack([each.double() for each in several]).mean(0).to(several[0].dtype)

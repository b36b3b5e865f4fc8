"""Weight averaging of several runs (model soups, arXiv 2203.05482): often better than each, at no inference cost."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.network.centernet import describe_backbone
from training.weights.checkpoint import Checkpoint, InvalidCheckpoint, load_checkpoint


def average_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """Averages weights and batch norm statistics; the rest of the checkpoint is the first one's.

    The runs must have started from the same weights, or the average is meaningless. Raises `InvalidCheckpoint` if
    labels, networks, or mean and std of the pixels differ, or if two runs drew random weights by different seeds.
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
    # a run that started from a checkpoint may be averaged with that checkpoint, whatever the seeds
    fresh = {
        each.config.seed: path
        for path, each in zip(paths, checkpoints, strict=True)
        if each.config.pretrained in ("", "imagenet")
    }
    if len(fresh) > 1:
        raise InvalidCheckpoint(
            f"{' and '.join(map(str, fresh.values()))}: neck and heads started from different random weights, which"
            " have no meaningful average: start all runs from one checkpoint"
        )
    weights = {key: _average([each.weights[key] for each in checkpoints]) for key in first.weights}
    return dataclasses.replace(first, weights=weights, ap=None, ap50=None, keypoint_ap=None, progress=None)


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in checkpoint.weights.items()}


def _normalisation(checkpoint: Checkpoint) -> tuple[object, object]:
    backbone = describe_backbone(checkpoint.config.backbone)
    return checkpoint.config.mean or backbone.mean, checkpoint.config.std or backbone.std


def _average(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():  # a batch norm's num_batches_tracked
        return tensors[0]
    return torch.stack([each.double() for each in tensors]).mean(0).to(tensors[0].dtype)

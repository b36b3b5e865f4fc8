"""Optimiser, learning-rate schedule, EMA of the weights, and frozen layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.network.centernet import CenterNet
from model.network.heads import Heads
from training.config import Config, InvalidConfig


def build_optimizer(network: CenterNet, config: Config) -> torch.optim.Optimizer:
    """Builds the optimiser with parameter groups for backbone and rest; vectors (biases, norms) get no weight decay."""
    groups: list[dict[str, Any]] = []
    backbone = set(network.backbone.parameters())
    for is_backbone in (True, False):
        rate = config.scaled_learning_rate * (config.backbone_learning_rate_scale if is_backbone else 1.0)
        trained = [p for p in network.parameters() if p.requires_grad and (p in backbone) == is_backbone]
        for decays in (True, False):
            parameters = [p for p in trained if (p.ndim > 1) == decays]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    non_empty = [group for group in groups if group["params"]]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(non_empty, fused=True)
        case "adam":
            return torch.optim.Adam(non_empty, fused=True)
        case "sgd":
            return torch.optim.SGD(non_empty, momentum=0.9, nesterov=True, fused=True)


def learning_rate_schedule(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns step → learning-rate factor: linear warm-up, then cosine decay to 0 or tenfold drops at set epochs.

    Raises `InvalidConfig` if the run ends before its last drop.
    """
    drops = config.learning_rate_drops
    if drops and max(drops) >= config.epochs:
        raise InvalidConfig(
            f"learning_rate_drops: epoch {max(drops)} is never reached in {config.epochs} epochs: set earlier drops"
            " for a shorter run, or none (--learning-rate-drops=) for a cosine schedule"
        )
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_steps, total // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if drops:
            return float(0.1 ** sum(step >= drop * steps_per_epoch for drop in drops))
        return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2

    return factor


def build_ema(network: CenterNet, decay: float) -> AveragedModel:
    """Builds an EMA of weights and buffers whose decay ramps up to `decay`, so that early weights fade quickly."""

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        current_decay = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(current_decay)(averaged, current, count)  # type: ignore[no-untyped-call]

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def freeze(network: CenterNet, config: Config) -> None:
    """Freezes what the run never trains: the first backbone stages, and heads whose losses have weight 0."""
    for stage in network.backbone.stages()[: config.frozen_stages]:
        for module in stage:
            module.requires_grad_(False)
    for heads in (network, *network.earlier_heads):
        assert isinstance(heads, Heads)
        heads.offset_head.requires_grad_(config.offset_weight + config.giou_weight > 0)
        heads.size_head.requires_grad_(config.size_weight + config.giou_weight > 0)


def set_training_mode(network: CenterNet, config: Config, epoch: int) -> None:
    """Puts the network in training mode for `epoch`, with frozen stages and frozen batch norm statistics kept so.

    The whole backbone is frozen for the first `freeze_backbone_epochs`.
    """
    network.train()
    is_frozen = epoch < config.freeze_backbone_epochs
    for number, stage in enumerate(network.backbone.stages()):
        is_trained = number >= config.frozen_stages and not is_frozen
        for module in stage:
            module.requires_grad_(is_trained)
            module.train(is_trained and not config.freeze_statistics)

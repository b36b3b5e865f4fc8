"""What is trained, and how fast."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.heads import Heads
from model.network import CenterNet
from training.config import Config, InvalidConfig


def build_optimizer(network: CenterNet, config: Config) -> torch.optim.Optimizer:
    """Over backbone and rest, each with and without weight decay: vectors (biases, norms) are not decayed."""
    groups: list[dict[str, Any]] = []
    backbone = set(network.backbone.parameters())
    for is_backbone in (True, False):
        rate = config.scaled_learning_rate * (config.backbone_learning_rate_scale if is_backbone else 1.0)
        own = [p for p in network.parameters() if p.requires_grad and (p in backbone) == is_backbone]
        for decays in (True, False):
            chosen = [p for p in own if (p.ndim > 1) == decays]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    chosen_groups = [group for group in groups if group["params"]]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(chosen_groups, fused=True)
        case "adam":
            return torch.optim.Adam(chosen_groups, fused=True)
        case "sgd":
            return torch.optim.SGD(chosen_groups, momentum=0.9, nesterov=True, fused=True)


def learning_rate_curve(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Step → share of the learning rate: a linear warm-up, then half a cosine down to 0, or the drops that are set.

    Raises `InvalidConfig` where the run ends before its last drop.
    """
    drops = config.learning_rate_drops
    if drops and max(drops) >= config.epochs:
        raise InvalidConfig(
            f"learning_rate_drops: epoch {max(drops)} is never reached in {config.epochs} epochs: name earlier ones for"
            " a shorter run, or none (--learning-rate-drops=) for a cosine"
        )
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_steps, total // 2)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if drops:
            return float(0.1 ** sum(step >= drop * steps_per_epoch for drop in drops))
        return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2

    return share


def build_average(network: CenterNet, decay: float) -> AveragedModel:
    """An exponential average of the weights that forgets its random start: the decay grows with the steps."""

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        ramp = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(ramp)(averaged, current, count)  # type: ignore[no-untyped-call]

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def freeze(network: CenterNet, config: Config) -> None:
    """Takes out of training what never learns: the first backbone stages, and a head whose losses weigh nothing."""
    for stage in network.backbone.stages()[: config.frozen_stages]:
        for module in stage:
            module.requires_grad_(False)
    for heads in (network, *network.earlier_heads):
        assert isinstance(heads, Heads)
        heads.offset_head.requires_grad_(config.offset_weight + config.giou_weight > 0)
        heads.size_head.requires_grad_(config.size_weight + config.giou_weight > 0)


def set_training_mode(network: CenterNet, config: Config, epoch: int) -> None:
    """Training mode for `epoch`, but for batch norms whose statistics stay as they were pretrained.

    In the first `freeze_backbone_epochs` the backbone does not learn.
    """
    network.train()
    is_frozen = epoch < config.freeze_backbone_epochs
    for number, stage in enumerate(network.backbone.stages()):
        learns = number >= config.frozen_stages and not is_frozen
        for module in stage:
            module.requires_grad_(learns)
            module.train(learns and not config.freeze_statistics)

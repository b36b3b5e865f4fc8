"""The losses of "Objects as Points" (arXiv 1904.07850, equations 1 to 4) and a dense GIoU loss for boxes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.cells import Cells, DenseMap, boxes_at
from model.network.codec import Targets
from model.network.gaussian import IGNORED
from model.network.heads import HeadMaps, KeypointMaps
from model.network.keypoints import KeypointTargets
from training.config import Config

_CELL_COUNT_MULTIPLE = 256  # the number of gathered cells is rounded up to a multiple of this


class Counts(NamedTuple):
    """The normalisers of the loss terms, each at least 1, counted over the whole batch, not one micro-batch."""

    objects: Tensor
    joint_places: Tensor  # joints with known positions, weighted over the cells that regress them
    joint_peaks: Tensor  # peaks in the joint heatmaps
    joint_cells: Tensor  # cells that contain a joint


def count_targets(targets: Targets, config: Config) -> Tensor:
    """Counts the targets of one micro-batch, in the order of `Counts`: (4,)."""
    joints = targets.keypoints
    places = (joints.is_known * _regression_weight(targets, config)[:, None]).sum()
    return torch.stack([targets.mask.sum(), places, (joints.heatmap == 1).sum(), joints.mask.sum()])


def detection_losses(maps: HeadMaps, targets: Targets, config: Config, counts: Counts) -> dict[str, Tensor]:
    """Returns the weighted loss terms by name, whose sum is minimised; maps and targets are batched.

    `counts` are those of the whole batch, so that the terms of its micro-batches add up. In a stacked network each term
    is the mean over the stacks.
    """
    stacks = [_single_stack_losses(stack, targets, config, counts) for stack in (*maps.earlier, maps)]
    return {name: torch.stack([terms[name] for terms in stacks]).mean() for name in stacks[0]}


def _single_stack_losses(maps: HeadMaps, targets: Targets, config: Config, counts: Counts) -> dict[str, Tensor]:
    object_count = counts.objects
    heatmap_loss = HEATMAP_LOSSES[config.heatmap_loss]
    terms = {"heatmap": config.heatmap_weight * heatmap_loss(maps.heatmap, targets.heatmap) / object_count}
    regression_weight = _regression_weight(targets, config)
    weights = regression_weight if config.giou_weight else targets.mask
    cells = _select_weighted_cells(weights)  # size and offset are computed only here
    weight = weights[cells][:, None]  # (M, 1)
    size, offset = maps.size.at(cells), maps.offset.at(cells)  # (M, 2)
    target_size, target_offset = (DenseMap(each).at(cells) for each in (targets.size, targets.offset))
    if config.offset_weight:
        terms["offset"] = config.offset_weight * _l1(offset, target_offset, weight) / object_count
    if config.size_weight:
        terms["size"] = config.size_weight * _l1(size, target_size, weight) / object_count
    if config.giou_weight:
        boxes, target_boxes = boxes_at(cells, size, offset), boxes_at(cells, target_size, target_offset)
        terms["giou"] = config.giou_weight * giou_loss(boxes, target_boxes, weight[:, 0]) / object_count
    if maps.keypoints is not None:
        terms |= keypoint_losses(maps.keypoints, targets.keypoints, regression_weight, config, counts)
    return terms


def keypoint_losses(
    maps: KeypointMaps, targets: KeypointTargets, weight: Tensor, config: Config, counts: Counts
) -> dict[str, Tensor]:
    """Returns the weighted loss terms of the joints, each a mean over the labelled joints (section 4.2 of the paper).

    `weight` (B, h, w) is each cell's weight in regressing the joints of its object.
    """
    cells = _select_weighted_cells(weight)
    is_known = DenseMap(targets.is_known).at(cells).repeat_interleave(2, dim=1)  # (M, 2 * J)
    known = is_known * weight[cells][:, None]
    places = _l1(maps.places.at(cells), DenseMap(targets.places).at(cells), known) / (2 * counts.joint_places)
    heatmap_loss = HEATMAP_LOSSES[config.heatmap_loss]
    heatmap = heatmap_loss(maps.heatmap, targets.heatmap) / counts.joint_peaks
    cells = _select_weighted_cells(targets.mask)
    has_joint = targets.mask[cells][:, None]
    offset = _l1(maps.offset.at(cells), DenseMap(targets.offset).at(cells), has_joint) / counts.joint_cells
    return {
        "keypoint_places": config.keypoint_weight * places,
        "keypoint_heatmap": config.keypoint_heatmap_weight * heatmap,
        "keypoint_offset": config.keypoint_offset_weight * offset,
    }


def _l1(values: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of L1 (equations 2 and 3): values, targets (M, C), weight (M, 1) or (M, C) → scalar."""
    return ((values - targets).abs() * weight).sum()


def _select_weighted_cells(weight: Tensor) -> Cells:
    """Selects the M cells of non-zero `weight` (B, h, w), padded with others to a multiple of `_CELL_COUNT_MULTIPLE`.

    A different M in every step would make CPUs build new kernels each time and fragment memory, so that steps would
    become slower and slower.
    """
    count = -(-int(weight.count_nonzero()) // _CELL_COUNT_MULTIPLE) * _CELL_COUNT_MULTIPLE
    heaviest = weight.flatten().float().topk(min(count, weight.numel()), sorted=False).indices
    return Cells(*torch.unravel_index(heaviest, weight.shape))


def _regression_weight(targets: Targets, config: Config) -> Tensor:
    """Each cell's weight (B, h, w) in regressing its object."""
    return targets.weight if config.dense_boxes else targets.mask.float()


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss, summed (equation 1): logits, target (B, C, h, w) → scalar.

    Computed from logits, so that no probability underflows. `IGNORED` cells do not count.
    """
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    p = logits.sigmoid()
    positive = (1 - p) ** alpha * log_p
    negative = (1 - target) ** beta * p**alpha * log_not_p
    return -(torch.where(target == 1, positive, negative) * (target != IGNORED)).sum()


def quality_focal_loss(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Focal loss for soft targets, summed (arXiv 2006.04388, equation 5): logits, target (B, C, h, w) → scalar.

    Every cell under a Gaussian is a positive example, not only the centre, which saves epochs on small data sets.
    `IGNORED` cells do not count.
    """
    distance = (target - logits.sigmoid()).abs()
    loss = distance**beta * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * (target != IGNORED)).sum()


def giou_loss(boxes: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of 1 - GIoU (arXiv 1902.09630): boxes, targets (M, 4), xyxy, weight (M,) → scalar.

    Regressing from all cells around a centre instead of one shortens training (TTFNet, arXiv 1909.00700, 4.2).
    """
    return ((1 - generalized_iou(boxes, targets)) * weight).sum()


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise GIoU: (M, 4), (M, 4), xyxy → (M,), -1..1. A box with negative width or height counts as empty."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) - overlap
    return overlap / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


HEATMAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "focal": focal_loss,
    "quality_focal": quality_focal_loss,
}

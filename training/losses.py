"""The losses of "Objects as Points" (arXiv 1904.07850, equations 1 to 4) and a dense one for boxes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cells import Cells, DenseMap, boxes_at
from model.codec import Targets
from model.gaussian import IGNORED
from model.heads import HeadMaps, KeypointMaps
from model.keypoints import KeypointTargets
from training.config import Config

_CELLS_STEP = 256  # what the number of cells that are asked for is a multiple of


class Counts(NamedTuple):
    """What a whole batch holds, each at least 1: the terms are means over it, however many parts it is computed in."""

    objects: Tensor
    joint_places: Tensor  # joints that an object's cells should know the place of
    joint_peaks: Tensor  # joints in the heatmaps
    joint_cells: Tensor  # cells with a joint in them


def count_targets(targets: Targets, config: Config) -> Tensor:
    """Counts a part of a batch, in the order of `Counts`: (4,)."""
    joints = targets.keypoints
    places = (joints.is_known * _teaching_weight(targets, config)[:, None]).sum()
    return torch.stack([targets.mask.sum(), places, (joints.heatmap == 1).sum(), joints.mask.sum()])


def detection_losses(maps: HeadMaps, targets: Targets, config: Config, counts: Counts) -> dict[str, Tensor]:
    """Every term, already weighted, by name; their sum is what is minimised. Maps and targets carry a batch.

    `counts` are those of the whole batch, where these are a part of it, so that terms add up. Of a stacked network each
    term is the mean over its stacks.
    """
    stacks = [_losses_of_stack(stack, targets, config, counts) for stack in (*maps.earlier, maps)]
    return {name: torch.stack([terms[name] for terms in stacks]).mean() for name in stacks[0]}


def _losses_of_stack(maps: HeadMaps, targets: Targets, config: Config, counts: Counts) -> dict[str, Tensor]:
    object_count = counts.objects
    heatmap_loss = HEATMAP_LOSSES[config.heatmap_loss]
    terms = {"heatmap": config.heatmap_weight * heatmap_loss(maps.heatmap, targets.heatmap) / object_count}
    teaching = _teaching_weight(targets, config)
    weights = teaching if config.giou_weight else targets.mask
    cells = _find_weighted(weights)  # the others need not be computed
    weight = weights[cells][:, None]  # (M, 1)
    size, offset = maps.size.at(cells), maps.offset.at(cells)  # (M, 2)
    wanted_size, wanted_offset = (DenseMap(each).at(cells) for each in (targets.size, targets.offset))
    if config.offset_weight:
        terms["offset"] = config.offset_weight * _l1(offset, wanted_offset, weight) / object_count
    if config.size_weight:
        terms["size"] = config.size_weight * _l1(size, wanted_size, weight) / object_count
    if config.giou_weight:
        boxes, wanted = boxes_at(cells, size, offset), boxes_at(cells, wanted_size, wanted_offset)
        terms["giou"] = config.giou_weight * giou_loss(boxes, wanted, weight[:, 0]) / object_count
    if maps.keypoints is not None:
        terms |= keypoint_losses(maps.keypoints, targets.keypoints, teaching, config, counts)
    return terms


def keypoint_losses(
    maps: KeypointMaps, targets: KeypointTargets, weight: Tensor, config: Config, counts: Counts
) -> dict[str, Tensor]:
    """The terms of the joints, already weighted, each the mean over those that have a place (section 4.2 of the paper).

    `weight` (B, h, w) is how much each cell teaches of where its object's joints are.
    """
    cells = _find_weighted(weight)
    is_known = DenseMap(targets.is_known).at(cells).repeat_interleave(2, dim=1)  # (M, 2 * J)
    known = is_known * weight[cells][:, None]
    places = _l1(maps.places.at(cells), DenseMap(targets.places).at(cells), known) / (2 * counts.joint_places)
    heatmap_loss = HEATMAP_LOSSES[config.heatmap_loss]
    heatmap = heatmap_loss(maps.heatmap, targets.heatmap) / counts.joint_peaks
    cells = _find_weighted(targets.mask)
    has_joint = targets.mask[cells][:, None]
    offset = _l1(maps.offset.at(cells), DenseMap(targets.offset).at(cells), has_joint) / counts.joint_cells
    return {
        "keypoint_places": config.keypoint_weight * places,
        "keypoint_heatmap": config.keypoint_heatmap_weight * heatmap,
        "keypoint_offset": config.keypoint_offset_weight * offset,
    }


def _l1(values: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """L1, summed (equations 2 and 3): values, wanted (M, C), weight (M, 1) or (M, C) → scalar."""
    return ((values - wanted).abs() * weight).sum()


def _find_weighted(weight: Tensor) -> Cells:
    """The cells that have a weight, of (B, h, w), and as many without as make a round number of them: (M,).

    Were there another number in each step, a CPU's kernels would be made anew in each, and memory would be left in
    pieces that fit no later one: steps would become slower and slower.
    """
    count = -(-int(weight.count_nonzero()) // _CELLS_STEP) * _CELLS_STEP
    heaviest = weight.flatten().float().topk(min(count, weight.numel()), sorted=False).indices
    return Cells(*torch.unravel_index(heaviest, weight.shape))


def _teaching_weight(targets: Targets, config: Config) -> Tensor:
    """How much each cell (B, h, w) teaches of its object."""
    return targets.weight if config.dense_boxes else targets.mask.float()


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss, summed (equation 1): logits, target (B, C, h, w) → scalar.

    From logits, so that no probability underflows. Cells that are `IGNORED` do not count.
    """
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    p = logits.sigmoid()
    positive = (1 - p) ** alpha * log_p
    negative = (1 - target) ** beta * p**alpha * log_not_p
    return -(torch.where(target == 1, positive, negative) * (target != IGNORED)).sum()


def quality_focal_loss(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Focal loss towards soft targets, summed (arXiv 2006.04388, equation 5): logits, target (B, C, h, w) → scalar.

    Every cell under a Gaussian teaches what the object looks like, not its centre alone: worth epochs on little data.
    Cells that are `IGNORED` do not count.
    """
    distance = (target - logits.sigmoid()).abs()
    loss = distance**beta * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * (target != IGNORED)).sum()


def giou_loss(boxes: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """1 - GIoU (arXiv 1902.09630) of boxes (M, 4) and those wanted, xyxy, weighted by `weight` (M,), summed → scalar.

    Learning from all cells around a centre instead of one shortens training (TTFNet, arXiv 1909.00700, 4.2).
    """
    return ((1 - generalized_iou(boxes, wanted)) * weight).sum()


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of boxes pair by pair: (M, 4), (M, 4), xyxy → (M,), -1..1. A box turned inside out counts as empty."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) - overlap
    return overlap / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


HEATMAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "focal": focal_loss,
    "quality_focal": quality_focal_loss,
}

"""Boxes → head maps (`encode`) and back (`decode`): each other's inverse (arXiv 1904.07850, sections 3 and 4)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network import STRIDE, HeadMaps

RADIUS_IOU = 0.3
IGNORED = -1.0


class Targets(NamedTuple):
    """What the head maps should be; a leading batch dimension may be stacked in front."""

    heatmap: Tensor  # (C, h, w), 1 at centres, Gaussians around them; `IGNORED` where nothing is to be learned
    size: Tensor  # (2, h, w), width and height in output pixels of the object that the cell belongs to
    offset: Tensor  # (2, h, w), from the cell's corner to that object's centre, in output pixels
    mask: Tensor  # (h, w), bool, true at centre cells
    weight: Tensor  # (h, w), the Gaussian of the object that the cell belongs to, scaled to a sum of 1 per object


class Detections(NamedTuple):
    """The best K peaks of every image, by falling score."""

    boxes: Tensor  # (B, K, 4), xyxy, input pixels
    scores: Tensor  # (B, K), 0..1
    labels: Tensor  # (B, K), int64


def gaussian_radius(width: Tensor, height: Tensor, iou: float = RADIUS_IOU) -> Tensor:
    """The farthest that both corners of a box may move while its IoU with itself stays at least `iou`.

    Shapes: width, height (N,) → (N,), all in the same unit. Source: CornerNet (arXiv 1808.01244, 3.2), the smallest of
    the three cases: both corners outwards, both inwards, one each.
    """
    area, half_perimeter = width * height, width + height
    shifted = (half_perimeter - (half_perimeter**2 - 4 * area * (1 - iou) / (1 + iou)).sqrt()) / 2
    inside = (half_perimeter - (half_perimeter**2 - 4 * area * (1 - iou)).sqrt()) / 4
    outside = (-half_perimeter + (half_perimeter**2 + 4 * area * (1 - iou) / iou).sqrt()) / 4
    return torch.minimum(torch.minimum(shifted, inside), outside)


def published_radius(width: Tensor, height: Tensor, iou: float) -> Tensor:
    """What the paper's code computes instead, to compare with: at 0.7 about three times `gaussian_radius`.

    Shapes: as there. Source: the authors' repository, which solves the third case's quadratic with a wrong divisor.
    """
    area, half_perimeter = width * height, width + height
    return -iou * half_perimeter + ((iou * half_perimeter) ** 2 + 4 * iou * (1 - iou) * area).sqrt()


Radius = Callable[[Tensor, Tensor, float], Tensor]


def encode(
    boxes_xyxy: Tensor,
    labels: Tensor,
    is_ignored: Tensor,
    class_count: int,
    grid: tuple[int, int],
    radius_iou: float = RADIUS_IOU,
    radius_of: Radius = gaussian_radius,
) -> Targets:
    """Turns one image's boxes into targets on a `grid` of (height, width) cells.

    Shapes: boxes_xyxy (N, 4), input pixels, centres inside the image; labels (N,), int64; is_ignored (N,), bool. A cell
    that several objects' Gaussians reach belongs to the one whose Gaussian is highest there, at a tie to the smallest.
    What is ignored is no object, and nothing is learned about its class in its cells that no object reaches.
    """
    height, width = grid
    boxes, regions, regions_labels = boxes_xyxy[~is_ignored] / STRIDE, boxes_xyxy[is_ignored], labels[is_ignored]
    labels = labels[~is_ignored]
    sizes = boxes[:, 2:] - boxes[:, :2]  # (N, 2)
    by_area = sizes.prod(1).argsort()
    boxes, sizes, labels = boxes[by_area], sizes[by_area], labels[by_area]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centres.floor().clamp(min=torch.zeros(2), max=torch.tensor([width - 1.0, height - 1.0]))

    heatmap = torch.zeros(class_count, height, width)
    if len(boxes) == 0:
        empty = torch.zeros(2, height, width)
        _ignore(heatmap, regions, regions_labels)
        return Targets(heatmap, empty, empty.clone(), torch.zeros(grid, dtype=torch.bool), torch.zeros(grid))

    radius = radius_of(sizes[:, 0], sizes[:, 1], radius_iou).floor()
    columns, rows = torch.arange(width), torch.arange(height)
    gaussian_x = _gaussian(columns - cells[:, :1], radius[:, None])  # (N, w)
    gaussian_y = _gaussian(rows - cells[:, 1:], radius[:, None])  # (N, h)
    gaussians = gaussian_y[:, :, None] * gaussian_x[:, None, :]  # (N, h, w)
    planes = labels[:, None].expand(-1, height * width)
    heatmap.flatten(1).scatter_reduce_(0, planes, gaussians.flatten(1), "amax")
    _ignore(heatmap, regions, regions_labels)

    highest, owner = gaussians.max(0)  # (h, w)
    belongs = highest > 0
    share = torch.zeros(len(boxes)).index_add_(0, owner.flatten(), highest.flatten())
    weight = highest / share[owner].clamp(min=1e-6)
    cell_corners = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    size = sizes[owner].permute(2, 0, 1) * belongs
    offset = (centres[owner].permute(2, 0, 1) - cell_corners) * belongs
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[cells[:, 1].long(), cells[:, 0].long()] = True
    return Targets(heatmap, size, offset, mask, weight)


def decode(maps: HeadMaps, limit: int = 100) -> Detections:
    """Takes the cells that are the highest of their 3x3 neighbourhood, and of these the best `limit` of all classes."""
    heatmap, size, offset = maps.heatmap, maps.size, maps.offset
    height, width = heatmap.shape[2:]
    # peaks and order are the same in logits, so that the sigmoid need only see the winners
    peaks = heatmap.masked_fill(heatmap < F.max_pool2d(heatmap, 3, stride=1, padding=1), -torch.inf)
    scores, indices = peaks.flatten(1).topk(limit)  # (B, K)
    cells = indices % (height * width)
    centres = torch.stack([cells % width, cells // width], dim=-1) + _gather(offset, cells)  # (B, K, 2)
    half_sizes = _gather(size, cells).clamp(min=0) / 2
    boxes = torch.cat([centres - half_sizes, centres + half_sizes], dim=-1) * STRIDE
    return Detections(boxes, scores.sigmoid(), indices // (height * width))


def boxes_of_maps(size: Tensor, offset: Tensor) -> Tensor:
    """The box that each cell stands for: size, offset (B, 2, h, w) → (B, 4, h, w), xyxy, all in output pixels."""
    height, width = size.shape[2:]
    columns = torch.arange(width, device=size.device).expand(height, width)
    rows = torch.arange(height, device=size.device)[:, None].expand(height, width)
    centres = offset + torch.stack([columns, rows])
    return torch.cat([centres - size / 2, centres + size / 2], dim=1)


def _ignore(heatmap: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> None:
    """Marks the cells of (C, h, w) that no object reaches, in boxes (M, 4), input pixels, of labels (M,)."""
    lows, highs = (boxes_xyxy[:, :2] / STRIDE).floor().long(), (boxes_xyxy[:, 2:] / STRIDE).ceil().long()
    for label, (left, top), (right, bottom) in zip(labels.tolist(), lows.tolist(), highs.tolist(), strict=True):
        cells = heatmap[label, top:bottom, left:right]
        cells[cells == 0] = IGNORED


def _gaussian(distance: Tensor, radius: Tensor) -> Tensor:
    sigma = (2 * radius + 1) / 6
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= radius)


def _gather(maps: Tensor, cells: Tensor) -> Tensor:
    """Maps (B, 2, h, w) at flat cells (B, K) → (B, K, 2)."""
    return maps.flatten(2).gather(2, cells[:, None].expand(-1, 2, -1)).transpose(1, 2)

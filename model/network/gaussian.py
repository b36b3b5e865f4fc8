"""Gaussians of a target heatmap, their radii, and ignored cells."""

from collections.abc import Callable

import torch
from torch import Tensor

IGNORED = -1.0  # heatmap target of a cell without a loss

Radius = Callable[[Tensor, Tensor, float], Tensor]  # width, height, IoU → radius


def gaussian_radius(width: Tensor, height: Tensor, iou: float) -> Tensor:
    """The largest shift of a box's two corners at which the IoU with the original box is still at least `iou`.

    Shapes: width, height (N,) → (N,), all in the same unit. Source: CornerNet (arXiv 1808.01244, 3.2): the minimum of
    three cases, both corners outwards, both inwards, one each.
    """
    area, half_perimeter = width * height, width + height
    shifted = (half_perimeter - (half_perimeter**2 - 4 * area * (1 - iou) / (1 + iou)).sqrt()) / 2
    inside = (half_perimeter - (half_perimeter**2 - 4 * area * (1 - iou)).sqrt()) / 4
    outside = (-half_perimeter + (half_perimeter**2 + 4 * area * (1 - iou) / iou).sqrt()) / 4
    return torch.minimum(torch.minimum(shifted, inside), outside)


def published_radius(width: Tensor, height: Tensor, iou: float) -> Tensor:
    """The radius that the paper's code computes, for comparison: at 0.7 about three times `gaussian_radius`.

    Shapes: as in `gaussian_radius`. Source: the authors' repository, which rounds the sides up and divides by the wrong
    number when it solves the third case's quadratic equation.
    """
    width, height = width.ceil(), height.ceil()
    area, half_perimeter = width * height, width + height
    return -iou * half_perimeter + ((iou * half_perimeter) ** 2 + 4 * iou * (1 - iou) * area).sqrt()


def gaussian(distance: Tensor, radius: Tensor) -> Tensor:
    """A Gaussian's value at a distance in cells: 1 at 0, 0 beyond `radius`; the shapes broadcast."""
    sigma = (2 * radius + 1) / 6
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= radius)


def draw_gaussians(heatmap: Tensor, planes: Tensor, cells: Tensor, radius: Tensor) -> Tensor:
    """Merges N Gaussians into a heatmap (C, h, w) by maximum, in place; returns the Gaussians, (N, h, w).

    Shapes: planes (N,), their channels; cells (N, 2), their centres (x, y); radius (N,), in cells.
    """
    height, width = heatmap.shape[1:]
    across = gaussian(torch.arange(width) - cells[:, :1], radius[:, None])  # (N, w)
    down = gaussian(torch.arange(height) - cells[:, 1:], radius[:, None])  # (N, h)
    gaussians = down[:, :, None] * across[:, None, :]
    heatmap.flatten(1).scatter_reduce_(0, planes[:, None].expand(-1, height * width), gaussians.flatten(1), "amax")
    return gaussians


def mark_ignored(plane: Tensor, boxes_xyxy: Tensor) -> None:
    """Sets a heatmap plane (h, w) to `IGNORED` in boxes (M, 4), output pixels, where it is zero."""
    lows, highs = boxes_xyxy[:, :2].floor().long(), boxes_xyxy[:, 2:].ceil().long()
    for (left, top), (right, bottom) in zip(lows.tolist(), highs.tolist(), strict=True):
        cells = plane[top:bottom, left:right]
        cells[cells == 0] = IGNORED

"""How far a heatmap's Gaussians reach, their values, and the cells that teach nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

IGNORED = -1.0

Radius = Callable[[Tensor, Tensor, float], Tensor]


def gaussian_radius(width: Tensor, height: Tensor, iou: float) -> Tensor:
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

    Shapes: as there. Source: the authors' repository, which solves the third case's quadratic with a wrong divisor, for
    sides that are rounded up.
    """
    width, height = width.ceil(), height.ceil()
    area, half_perimeter = width * height, width + height
    return -iou * half_perimeter + ((iou * half_perimeter) ** 2 + 4 * iou * (1 - iou) * area).sqrt()


def gaussian(distance: Tensor, radius: Tensor) -> Tensor:
    """Its value at a distance in cells, 1 in the middle, 0 beyond `radius`; the shapes broadcast."""
    sigma = (2 * radius + 1) / 6
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= radius)


def draw_gaussians(heatmap: Tensor, planes: Tensor, cells: Tensor, radius: Tensor) -> Tensor:
    """Lays N Gaussians over planes (N,) of a heatmap (C, h, w), where they are higher; returns them: (N, h, w).

    `cells` (N, 2), x and y, are their middles, `radius` (N,) how far they reach.
    """
    height, width = heatmap.shape[1:]
    across = gaussian(torch.arange(width) - cells[:, :1], radius[:, None])  # (N, w)
    down = gaussian(torch.arange(height) - cells[:, 1:], radius[:, None])  # (N, h)
    gaussians = down[:, :, None] * across[:, None, :]
    heatmap.flatten(1).scatter_reduce_(0, planes[:, None].expand(-1, height * width), gaussians.flatten(1), "amax")
    return gaussians


def ignore(plane: Tensor, boxes_xyxy: Tensor) -> None:
    """Marks the cells of one heatmap (h, w) that no Gaussian reaches, in boxes (M, 4), output pixels."""
    lows, highs = boxes_xyxy[:, :2].floor().long(), boxes_xyxy[:, 2:].ceil().long()
    for (left, top), (right, bottom) in zip(lows.tolist(), highs.tolist(), strict=True):
        cells = plane[top:bottom, left:right]
        cells[cells == 0] = IGNORED

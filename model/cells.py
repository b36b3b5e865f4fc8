"""Cells of the grid that head maps lie on, and what is said of them."""

import dataclasses
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Cells(NamedTuple):
    """Some cells of a batch's grids."""

    picture: Tensor  # (...), int64, or what broadcasts to it
    row: Tensor  # (...), int64
    column: Tensor  # (...), int64

    @property
    def corner(self) -> Tensor:
        """(..., 2), x and y in output pixels."""
        return torch.stack([self.column, self.row], dim=-1)


class CellMap(Protocol):
    """C values for every cell of a batch's grids, (B, C, h, w), be they computed already or not."""

    def at(self, cells: Cells) -> Tensor:
        """The values of `cells`, (...): (..., C)."""

    def whole(self) -> Tensor:
        """The values of all: (B, C, h, w)."""


@dataclasses.dataclass(frozen=True)
class WholeMap:
    """A `CellMap` that has all of its `values`, (B, C, h, w)."""

    values: Tensor

    def at(self, cells: Cells) -> Tensor:
        """The values of `cells`, (...): (..., C)."""
        return self.values.permute(0, 2, 3, 1)[cells]

    def whole(self) -> Tensor:
        """The values of all: (B, C, h, w)."""
        return self.values


def find_cells(in_each: Tensor, width: int) -> Cells:
    """The cells that are counted in each picture's grid, `width` cells wide, row by row: (B, ...)."""
    pictures = torch.arange(in_each.shape[0], device=in_each.device).view(-1, *[1] * (in_each.dim() - 1))
    return Cells(pictures, *divide(in_each, width))


def corners_of(grid: tuple[int, int]) -> Tensor:
    """The corners of all cells of a grid (h, w): (h, w, 2), x and y in output pixels."""
    height, width = grid
    return torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1)


def boxes_at(cells: Cells, size: Tensor, offset: Tensor) -> Tensor:
    """The boxes, (..., 4), xyxy, that cells stand for by size and offset, (..., 2); all in output pixels."""
    centres = cells.corner + offset
    return torch.cat([centres - size / 2, centres + size / 2], dim=-1)


def divide(indices: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Returns the quotients of indices of 0 or more, and the remainders."""
    quotients = torch.div(indices, divisor, rounding_mode="floor")  # five nodes of a graph, for which `//` is ten
    return quotients, indices - quotients * divisor


def look_around(features: Tensor, cells: Cells) -> Tensor:
    """What a 3x3 convolution sees of features (B, C, h, w) at N cells: (N, 9 * C), in the order of rows, columns, C.

    Beyond the edge there are zeros.
    """
    height, width = features.shape[2:]
    down = torch.arange(-1, 2, device=features.device).repeat_interleave(3)  # (9,)
    right = torch.arange(-1, 2, device=features.device).repeat(3)
    rows, columns = cells.row[:, None] + down, cells.column[:, None] + right  # (N, 9)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    near = torch.where(inside, (cells.picture[:, None] * height + rows) * width + columns, 0)
    seen = features.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, near.flatten())  # (9 * N, C)
    return (seen * inside.view(-1, 1)).view(-1, 9 * features.shape[1])

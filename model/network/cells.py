"""Cells of the output grid, and maps that can be read at some cells or at all of them."""

import dataclasses
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Cells(NamedTuple):
    """Indices of some cells of a batch's grids."""

    image: Tensor  # (...), int64, index in the batch, or a shape that broadcasts to it
    row: Tensor  # (...), int64
    column: Tensor  # (...), int64

    @property
    def corner(self) -> Tensor:
        """Top left corners, (..., 2), x and y in output pixels."""
        return torch.stack([self.column, self.row], dim=-1)


class OutputMap(Protocol):
    """C values for every cell of a batch's grids, (B, C, h, w), computed in advance or on demand."""

    def at(self, cells: Cells) -> Tensor:
        """The values at `cells`, (...): (..., C)."""

    def dense(self) -> Tensor:
        """The values at all cells: (B, C, h, w)."""


@dataclasses.dataclass(frozen=True)
class DenseMap:
    """An `OutputMap` whose `values`, (B, C, h, w), are all computed in advance."""

    values: Tensor

    def at(self, cells: Cells) -> Tensor:
        """The values at `cells`, (...): (..., C)."""
        return self.values.permute(0, 2, 3, 1)[cells]

    def dense(self) -> Tensor:
        """The values at all cells: (B, C, h, w)."""
        return self.values


def unravel_cells(indices: Tensor, width: int) -> Cells:
    """Cells by their row-major indices (B, ...) in each image's grid, which is `width` cells wide."""
    images = torch.arange(indices.shape[0], device=indices.device).view(-1, *[1] * (indices.dim() - 1))
    return Cells(images, *div_mod(indices, width))


def grid_corners(grid: tuple[int, int]) -> Tensor:
    """Top left corners of all cells of a grid (h, w): (h, w, 2), x and y in output pixels."""
    height, width = grid
    return torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1)


def boxes_at(cells: Cells, size: Tensor, offset: Tensor) -> Tensor:
    """Boxes (..., 4), xyxy, from the size and offset (..., 2) that are predicted at `cells`; all in output pixels."""
    centres = cells.corner + offset
    return torch.cat([centres - size / 2, centres + size / 2], dim=-1)


def div_mod(indices: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Quotients and remainders of non-negative indices."""
    quotients = torch.div(indices, divisor, rounding_mode="floor")  # exports to five ONNX nodes, `//` to ten
    return quotients, indices - quotients * divisor


def gather_patches(features: Tensor, cells: Cells) -> Tensor:
    """3x3 patches (im2col) of features (B, C, h, w) around N cells: (N, 9 * C), ordered by row, column, channel.

    Values outside the grid are zero.
    """
    height, width = features.shape[2:]
    row_shift = torch.arange(-1, 2, device=features.device).repeat_interleave(3)  # (9,)
    column_shift = torch.arange(-1, 2, device=features.device).repeat(3)
    rows, columns = cells.row[:, None] + row_shift, cells.column[:, None] + column_shift  # (N, 9)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    indices = torch.where(inside, (cells.image[:, None] * height + rows) * width + columns, 0)
    patches = features.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, indices.flatten())  # (9 * N, C)
    return (patches * inside.view(-1, 1)).view(-1, 9 * features.shape[1])

"""The heads: convolutions that predict heatmap, size, offset and keypoints (arXiv 1904.07850, section 4)."""

import dataclasses
import math
from typing import NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.cells import Cells, OutputMap, div_mod, gather_patches

STRIDE = 4  # of the feature map that the heads take
SIZE_UNIT = 64.0  # input pixels for a raw size output of 1.0: the weights stay small even for boxes as large as a photo


class KeypointMaps(NamedTuple):
    """Predictions for J joints at every cell of the grid, (h, w)."""

    places: OutputMap  # 2 * J values, from the cell's corner to each joint (x, y) of its object, in output pixels
    heatmap: Tensor  # (B, J, h, w), logits
    offset: OutputMap  # 2 values, from the cell's corner to the joint in it (x, y), in output pixels


class HeadMaps(NamedTuple):
    """Predictions at every cell of the grid, (h, w) = (H, W) / stride; a cell is one output pixel."""

    heatmap: Tensor  # (B, C, h, w), logits
    size: OutputMap  # 2 values, width and height in output pixels
    offset: OutputMap  # 2 values, from the cell's corner to the centre (x, y), in output pixels
    keypoints: KeypointMaps | None = None  # if the network predicts joints
    earlier: tuple["HeadMaps", ...] = ()  # from earlier maps of a stacked backbone: intermediate supervision only


class Head(nn.Sequential):
    """A 3x3 convolution, a ReLU and a 1x1 convolution: (B, in_channels, h, w) → (B, out_channels, h, w)."""

    def __init__(self, in_channels: int, width: int, out_channels: int, initial_bias: float) -> None:
        hidden, last = nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(width, out_channels, 1)
        super().__init__(hidden, nn.ReLU(inplace=True), last)
        assert last.bias is not None
        nn.init.constant_(last.bias, initial_bias)

    def at(self, features: Tensor, cells: Cells) -> Tensor:
        """The output at N cells only: (N, out_channels)."""
        hidden, _, last = self
        return _apply_to_patches(last, F.relu(_apply_to_patches(hidden, gather_patches(features, cells))))


def _apply_to_patches(convolution: nn.Module, patches: Tensor) -> Tensor:
    """A convolution as a matrix product: patches (N, k * k * in_channels) → (N, out_channels), of the same dtype."""
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patches, weight.to(patches.dtype), convolution.bias.to(patches.dtype))


@dataclasses.dataclass(frozen=True)
class LazyMap:
    """An `OutputMap` that applies `head` to features (B, in_channels, H/4, W/4) only at the cells that are read.

    An input of 320 x 320 pixels has 6,400 cells, of which about a hundred are read. At a `stride` of 2 each cell of the
    features gives four output cells. Values are float32, multiplied by `unit`.
    """

    head: Head
    features: Tensor
    stride: int
    unit: float = 1.0

    def at(self, cells: Cells) -> Tensor:
        """The values at `cells`, (...): (..., C)."""
        image, row, column = (each.expand_as(cells.row).flatten() for each in cells)
        scale = STRIDE // self.stride
        if scale == 1:
            values = self.head.at(self.features, Cells(image, row, column))
        else:
            (row, sub_row), (column, sub_column) = div_mod(row, scale), div_mod(column, scale)
            outputs = self.head.at(self.features, Cells(image, row, column))
            outputs = outputs.view(outputs.shape[0], -1, scale * scale)  # (N, C, sub-cells), as in `pixel_shuffle`
            sub_cell = (sub_row * scale + sub_column)[:, None, None].expand(-1, outputs.shape[1], 1)
            values = outputs.gather(2, sub_cell).squeeze(2)
        return (values.float() * self.unit).view(*cells.row.shape, values.shape[1])

    def dense(self) -> Tensor:
        """The values at all cells: (B, C, h, w)."""
        return apply_head(self.head, self.features, self.stride) * self.unit


def apply_head(head: Head, features: Tensor, stride: int) -> Tensor:
    """A head's output at every cell, float32: features (B, in_channels, H/4, W/4) → (B, C, H/stride, W/stride)."""
    values: Tensor = head(features).float()
    return F.pixel_shuffle(values, STRIDE // stride) if stride < STRIDE else values


class Heads(nn.Module):
    """All heads that take one feature map at stride 4."""

    def add_heads(self, in_channels: int, width: int, class_count: int, joint_count: int, stride: int) -> Self:
        """Creates the heads, each with a hidden layer of `width` channels; keypoint heads only if there are joints.

        At a `stride` of 2 each cell of the features gives four output cells: a head's last layer has the outputs of all
        four (sub-pixel convolution, arXiv 1609.05158), so that the finer grid costs next to nothing.

        Not in the constructor, so that the network's own heads come after its neck: optimisers identify parameters by
        their order.
        """
        self.stride, self.joint_count = stride, joint_count
        cells = (STRIDE // stride) ** 2
        # every cell starts at p = 0.1, so that the many negatives do not dominate the first steps (section 5)
        rare = -math.log(9.0)
        self.heatmap_head = Head(in_channels, width, class_count * cells, rare)
        self.size_head = Head(in_channels, width, 2 * cells, 1.0)
        self.offset_head = Head(in_channels, width, 2 * cells, 0.5)
        if joint_count:
            # joints start at their object's centre
            self.keypoint_head = Head(in_channels, width, 2 * joint_count * cells, 0.0)
            self.keypoint_heatmap_head = Head(in_channels, width, joint_count * cells, rare)
            self.keypoint_offset_head = Head(in_channels, width, 2 * cells, 0.5)
        return self

    def apply_heads(self, features: Tensor) -> HeadMaps:
        """Features (B, in_channels, H/4, W/4) → the head maps, at `stride`."""
        size_unit = SIZE_UNIT / self.stride
        return HeadMaps(
            heatmap=apply_head(self.heatmap_head, features, self.stride),
            size=LazyMap(self.size_head, features, self.stride, size_unit),
            offset=LazyMap(self.offset_head, features, self.stride),
            keypoints=self._apply_keypoint_heads(features, size_unit) if self.joint_count else None,
        )

    def _apply_keypoint_heads(self, features: Tensor, size_unit: float) -> KeypointMaps:
        return KeypointMaps(
            places=LazyMap(self.keypoint_head, features, self.stride, size_unit),
            heatmap=apply_head(self.keypoint_heatmap_head, features, self.stride),
            offset=LazyMap(self.keypoint_offset_head, features, self.stride),
        )

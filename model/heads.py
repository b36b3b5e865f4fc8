"""The heads: what the network says of the cells of its grid (arXiv 1904.07850, section 4)."""

import dataclasses
import math
from typing import NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn

from model.cells import CellMap, Cells, divide, look_around

STRIDE = 4  # of the map that the heads read
SIZE_UNIT = 64.0  # input pixels: the size head's raw 1.0, so that its weights need not grow to reach whole photos


class KeypointMaps(NamedTuple):
    """What a network that knows J joints says of them at every cell of its grid, (h, w)."""

    places: CellMap  # 2 * J values, from the cell's corner to each joint (x, y) of its object, in output pixels
    heatmap: Tensor  # (B, J, h, w), logits
    offset: CellMap  # 2 values, from the cell's corner to the joint in it (x, y), in output pixels


class HeadMaps(NamedTuple):
    """What the network says of every cell of its grid, (h, w) = (H, W) / stride; a cell is one output pixel."""

    heatmap: Tensor  # (B, C, h, w), logits
    size: CellMap  # 2 values, width and height in output pixels
    offset: CellMap  # 2 values, from the cell's corner to the centre (x, y), in output pixels
    keypoints: KeypointMaps | None = None  # where the network knows joints
    earlier: tuple["HeadMaps", ...] = ()  # what a stacked backbone's earlier maps say, to learn from alone


class Head(nn.Sequential):
    """A hidden layer of 3x3 cells and a last one: (B, in_channels, h, w) → (B, out_channels, h, w)."""

    def __init__(self, in_channels: int, width: int, out_channels: int, first_value: float) -> None:
        hidden, last = nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(width, out_channels, 1)
        super().__init__(hidden, nn.ReLU(inplace=True), last)
        assert last.bias is not None
        nn.init.constant_(last.bias, first_value)  # what it says at first, but for what its random weights add

    def at(self, features: Tensor, cells: Cells) -> Tensor:
        """The same at N cells alone: (N, out_channels)."""
        hidden, _, last = self
        return _multiply(last, F.relu(_multiply(hidden, look_around(features, cells))))


def _multiply(layer: nn.Module, seen: Tensor) -> Tensor:
    """A convolution of what it sees at N cells, (N, k * k * in_channels), in the precision of that."""
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(seen, weight.to(seen.dtype), layer.bias.to(seen.dtype))


@dataclasses.dataclass(frozen=True)
class ReadMap:
    """A `CellMap` that a head reads off features (B, in_channels, H/4, W/4), where it is asked for.

    In 320 x 320 pixels there are 6,400 cells, and boxes of a hundred are wanted. At a `stride` of 2 each cell of the
    features gives four. Values are float32, in `unit`s.
    """

    head: Head
    features: Tensor
    stride: int
    unit: float = 1.0

    def at(self, cells: Cells) -> Tensor:
        """The values of `cells`, (...): (..., C)."""
        picture, row, column = (each.expand_as(cells.row).flatten() for each in cells)
        scale = STRIDE // self.stride
        if scale == 1:
            values = self.head.at(self.features, Cells(picture, row, column))
        else:
            (row, down), (column, right) = divide(row, scale), divide(column, scale)
            every = self.head.at(self.features, Cells(picture, row, column))
            every = every.view(every.shape[0], -1, scale * scale)
            values = every.gather(2, (down * scale + right)[:, None, None].expand(-1, every.shape[1], 1)).squeeze(2)
        return (values.float() * self.unit).view(*cells.row.shape, values.shape[1])

    def whole(self) -> Tensor:
        """The values of all cells: (B, C, h, w)."""
        return read_whole(self.head, self.features, self.stride) * self.unit


def read_whole(head: Head, features: Tensor, stride: int) -> Tensor:
    """What a head says of every cell, float32: features (B, in_channels, H/4, W/4) → (B, C, H/stride, W/stride)."""
    values: Tensor = head(features).float()
    return F.pixel_shuffle(values, STRIDE // stride) if stride < STRIDE else values


class Heads(nn.Module):
    """What reads the head maps off one map at stride 4."""

    def add_heads(self, in_channels: int, width: int, class_count: int, joint_count: int, stride: int) -> Self:
        """Makes the heads, of a hidden layer of `width` each; those of keypoints where there are joints.

        At a `stride` of 2 each cell of the map that they read gives four: a head's last layer has the outputs of all
        four (sub-pixel convolution, arXiv 1609.05158), so that the finer grid costs next to nothing.

        Not the constructor, so that the network can have its own behind the neck: optimisers know parameters by place.
        """
        self.stride, self.joint_count = stride, joint_count
        cells = (STRIDE // stride) ** 2
        # every cell starts at p = 0.1, so that the many negatives do not drown the first steps (section 5 of the paper)
        rare = -math.log(9.0)
        self.heatmap_head = Head(in_channels, width, class_count * cells, rare)
        self.size_head = Head(in_channels, width, 2 * cells, 1.0)
        self.offset_head = Head(in_channels, width, 2 * cells, 0.5)
        if joint_count:
            self.keypoint_head = Head(in_channels, width, 2 * joint_count * cells, 0.0)  # at their object's centre
            self.keypoint_heatmap_head = Head(in_channels, width, joint_count * cells, rare)
            self.keypoint_offset_head = Head(in_channels, width, 2 * cells, 0.5)
        return self

    def read(self, features: Tensor) -> HeadMaps:
        """(B, in_channels, H/4, W/4) → the head maps, at `stride`."""
        to_pixels = SIZE_UNIT / self.stride
        return HeadMaps(
            heatmap=read_whole(self.heatmap_head, features, self.stride),
            size=ReadMap(self.size_head, features, self.stride, to_pixels),
            offset=ReadMap(self.offset_head, features, self.stride),
            keypoints=self._find_keypoints(features, to_pixels) if self.joint_count else None,
        )

    def _find_keypoints(self, features: Tensor, to_pixels: float) -> KeypointMaps:
        return KeypointMaps(
            places=ReadMap(self.keypoint_head, features, self.stride, to_pixels),
            heatmap=read_whole(self.keypoint_heatmap_head, features, self.stride),
            offset=ReadMap(self.keypoint_offset_head, features, self.stride),
        )

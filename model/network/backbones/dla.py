"""DLA-34: deep layer aggregation (Yu et al., arXiv 1707.06484) with its authors' key names."""

import torch
from torch import Tensor, nn

from model.network.backbones.backbone import Backbone
from model.network.convolution import make_conv_bn

_CHANNELS = (16, 32, 64, 128, 256, 512)


class Dla(Backbone):
    """DLA-34 without its classifier."""

    channels = _CHANNELS[2:]
    # the authors' levels 3 and 4 have a projection that their forward pass never uses
    unused_keys = ("fc.", "level3.project.", "level4.project.")

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = _conv_bn_relu(3, _CHANNELS[0], 7, 1)
        self.level0 = _conv_bn_relu(_CHANNELS[0], _CHANNELS[0], 3, 1)
        self.level1 = _conv_bn_relu(_CHANNELS[0], _CHANNELS[1], 3, 2)
        self.level2 = Tree(1, _CHANNELS[1], _CHANNELS[2], 2)
        self.level3 = Tree(2, _CHANNELS[2], _CHANNELS[3], 2, has_level_root=True)
        self.level4 = Tree(2, _CHANNELS[3], _CHANNELS[4], 2, has_level_root=True)
        self.level5 = Tree(1, _CHANNELS[4], _CHANNELS[5], 2, has_level_root=True)

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the stem and then of each map, in order."""
        stem: list[nn.Module] = [self.base_layer, self.level0, self.level1]
        return [stem, [self.level2], [self.level3], [self.level4], [self.level5]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) → four maps (B, channels[i], H / strides[i], W / strides[i]), finest first."""
        x = self.level1(self.level0(self.base_layer(x)))
        maps = []
        for level in (self.level2, self.level3, self.level4, self.level5):
            x = level(x)
            maps.append(x)
        return maps


class Tree(nn.Module):
    """Two subtrees, or two blocks at depth 1, whose outputs a root merges (figure 3 of the paper).

    Shapes: (B, in_channels, H, W) → (B, out_channels, H / stride, W / stride). The last root also merges the
    skip connections that `forward` is given, of `skip_channels` channels in total.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        has_level_root: bool = False,
        skip_channels: int = 0,
    ) -> None:
        super().__init__()
        self.has_level_root = has_level_root
        self.downsample = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        if has_level_root:
            skip_channels += in_channels
        self.is_deep = depth > 1
        if self.is_deep:
            self.tree1: nn.Module = Tree(depth - 1, in_channels, out_channels, stride)
            self.tree2: nn.Module = Tree(
                depth - 1, out_channels, out_channels, 1, skip_channels=skip_channels + out_channels
            )
        else:
            self.tree1 = Block(in_channels, out_channels, stride)
            self.tree2 = Block(out_channels, out_channels, 1)
            self.root = Root(2 * out_channels + skip_channels, out_channels)
            self.project: nn.Module = nn.Identity()
            if in_channels != out_channels:
                self.project = make_conv_bn(in_channels, out_channels)

    def forward(self, x: Tensor, skips: tuple[Tensor, ...] = ()) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride), both subtrees and `skips` merged.

        The skip connections have the output's height and width.
        """
        bottom = self.downsample(x)
        if self.has_level_root:
            skips = (*skips, bottom)
        if self.is_deep:
            first = self.tree1(x)
            merged: Tensor = self.tree2(first, (*skips, first))
        else:
            first = self.tree1(x, self.project(bottom))
            merged = self.root(self.tree2(first, first), first, *skips)
        return merged


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut comes from outside."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride), which `shortcut` has too."""
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + shortcut)
        return y


class Root(nn.Module):
    """Merges maps of one size by a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps (B, c, H, W), whose channels add up to `in_channels` → (B, out_channels, H, W)."""
        y: Tensor = self.relu(self.bn(self.conv(torch.cat(maps, 1))))
        return y


def dla34() -> Dla:
    """DLA-34, 15.2 M parameters without its classifier."""
    return Dla()


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*make_conv_bn(in_channels, out_channels, kernel_size, stride), nn.ReLU(inplace=True))

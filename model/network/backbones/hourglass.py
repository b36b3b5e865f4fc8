"""Stacked hourglass network (Newell et al., arXiv 1603.06937) as in CenterNet, with its authors' key names.

Source: CornerNet (arXiv 1808.01244, section 4.1): strides instead of pooling, and fewer channels.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbones.backbone import Backbone
from model.network.convolution import make_conv_bn


class Hourglass(Backbone):
    """`stacks` hourglass modules in a row, each of which takes the input and the output of the one before it.

    `widths` are the channels at full size and then at each halving, `repeats` the residual blocks there.
    """

    def __init__(self, stacks: int, widths: Sequence[int], repeats: Sequence[int], out_width: int) -> None:
        super().__init__()
        self.channels = (out_width,) * stacks
        self.strides = (4,) * stacks
        self.coarsest_stride = 4 * 2 ** (len(widths) - 1)
        width, links = widths[0], range(stacks - 1)  # links between consecutive hourglasses
        self.pre = nn.Sequential(ConvBnRelu(3, width // 2, 7, stride=2), Residual(width // 2, width, stride=2))
        self.kps = nn.ModuleList(HourglassModule(widths, repeats) for _ in range(stacks))
        self.cnvs = nn.ModuleList(ConvBnRelu(width, out_width, 3) for _ in range(stacks))
        self.inters = nn.ModuleList(Residual(width, width) for _ in links)
        self.inters_ = nn.ModuleList(make_conv_bn(width, width) for _ in links)
        self.cnvs_ = nn.ModuleList(make_conv_bn(out_width, width) for _ in links)

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the stem and then of each map, in order."""
        stages: list[list[nn.Module]] = [[self.pre], [self.kps[0], self.cnvs[0]]]
        for index, link in enumerate(zip(self.inters_, self.cnvs_, self.inters, strict=True), start=1):
            stages.append([*link, self.kps[index], self.cnvs[index]])
        return stages

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) → the output of each hourglass, (B, out_width, H/4, W/4)."""
        x = self.pre(x)
        maps = [self.cnvs[0](self.kps[0](x))]
        links = zip(self.inters_, self.cnvs_, self.inters, strict=True)
        for index, (project_input, project_map, merge) in enumerate(links, start=1):
            x = merge(F.relu(project_input(x) + project_map(maps[-1])))
            maps.append(self.cnvs[index](self.kps[index](x)))
        return maps


class HourglassModule(nn.Module):
    """An hourglass: residual blocks at this size, plus a recursive hourglass at half the size.

    Shapes: (B, widths[0], H, W) → the same.
    """

    def __init__(self, widths: Sequence[int], repeats: Sequence[int]) -> None:
        super().__init__()
        (outer, inner), repeat = widths[:2], repeats[0]
        self.up1 = nn.Sequential(*(Residual(outer, outer) for _ in range(repeat)))
        self.low1 = nn.Sequential(
            Residual(outer, inner, stride=2), *(Residual(inner, inner) for _ in range(repeat - 1))
        )
        self.low2: nn.Module
        if len(widths) > 2:
            self.low2 = HourglassModule(widths[1:], repeats[1:])
        else:
            self.low2 = nn.Sequential(*(Residual(inner, inner) for _ in range(repeats[1])))
        self.low3 = nn.Sequential(*(Residual(inner, inner) for _ in range(repeat - 1)), Residual(inner, outer))

    def forward(self, x: Tensor) -> Tensor:
        """(B, widths[0], H, W) → the same shape, the sum of both paths."""
        low = self.low3(self.low2(self.low1(x)))
        y: Tensor = self.up1(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")
        return y


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes_shape = stride > 1 or in_channels != out_channels
        self.skip = make_conv_bn(in_channels, out_channels, stride=stride) if changes_shape else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ConvBnRelu(nn.Module):
    """A convolution, batch norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        return F.relu(self.bn(self.conv(x)))


def hourglass104() -> Hourglass:
    """Hourglass-104: two hourglasses, 187.7 M parameters."""
    return Hourglass(2, (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4), out_width=256)

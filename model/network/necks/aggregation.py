"""The paper's neck for DLA-34: iterative deep aggregation with deformable convolutions. Key names are the authors'.

Sources: arXiv 1904.07850, section 5 and figure 6; arXiv 1707.06484, section 3.1.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from model.network.convolution import make_conv_bn
from model.network.deformable import DeformableConv
from model.network.necks.neck import Neck
from model.network.necks.transposed import bilinear_kernel


class AggregationNeck(Neck):
    """Upsamples each map and merges it with the next finer one, repeatedly, until all are at stride 4.

    Map i, unless it is the coarsest, must have `width * 2**i` channels, as in DLA-34; for other backbones a 1x1
    convolution comes first.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(channels, width)
        widths = [width * 2**level for level in range(len(channels) - 1)]
        self.laterals = nn.ModuleList(_lateral(c, w) for c, w in zip(channels, widths, strict=False))
        coarser = [*widths[1:], channels[-1]]
        self.dla_up = nn.ModuleDict()
        for step, level in enumerate(reversed(range(len(widths)))):
            count = len(widths) - level
            self.dla_up[f"ida_{step}"] = Aggregation([coarser[level]] * count, widths[level], [2] * count)
        self.ida_up = Aggregation(widths[1:], width, [2**level for level in range(1, len(widths))])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels[i], H / strides[i], W / strides[i]), finest first → one (B, width, H/4, W/4)."""
        finer = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=False)]
        coarser, deepest = [maps[-1]], list[Tensor]()
        for level, aggregate in zip(reversed(range(len(finer))), self.dla_up.values(), strict=True):
            coarser = aggregate([finer[level], *coarser])
            deepest.insert(0, coarser[-1])
        merged: Tensor = self.ida_up(deepest)[-1]
        return merged


class Aggregation(nn.Module):
    """Merges maps from the finest to the coarsest, each with the result so far.

    Shapes: the first (B, width, H, W), the others (B, channels[i], H / factors[i], W / factors[i]) → as many maps
    (B, width, H, W), the first unchanged.
    """

    def __init__(self, channels: Sequence[int], width: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.count = len(channels)
        for index, (in_channels, factor) in enumerate(zip(channels, factors, strict=True), start=1):
            self.add_module(f"proj_{index}", DeformableConvBnRelu(in_channels, width))
            self.add_module(f"up_{index}", _upsample(width, factor))
            self.add_module(f"node_{index}", DeformableConvBnRelu(width, width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps, shaped as in the class → merged maps: the first unchanged, then each merged with all before it."""
        merged = [maps[0]]
        for index in range(1, self.count + 1):
            project, upsample, node = (self.get_submodule(f"{part}_{index}") for part in ("proj", "up", "node"))
            merged.append(node(upsample(project(maps[index])) + merged[-1]))
        return merged


class DeformableConvBnRelu(nn.Module):
    """A deformable convolution, batch norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DeformableConv(in_channels, out_channels)
        self.actf = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        y: Tensor = self.actf(self.conv(x))
        return y


def _upsample(channels: int, factor: int) -> nn.ConvTranspose2d:
    up = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, factor // 2, groups=channels, bias=False)
    up.weight.data.copy_(bilinear_kernel(factor))
    return up


def _lateral(in_channels: int, out_channels: int) -> nn.Module:
    if in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(*make_conv_bn(in_channels, out_channels), nn.ReLU(inplace=True))

"""Top-down neck (after feature pyramids, Lin et al., arXiv 1612.03144): plain convolutions, nothing deformable."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class TopDownNeck(nn.Module):
    """Merges the maps at strides 4, 8, 16, 32 into one map at stride 4.

    Shapes: maps (B, channels[i], H / 2**(i+2), W / 2**(i+2)) → (B, width, H/4, W/4).
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_conv_bn(c, width, kernel_size=1) for c in channels)
        self.smooths = nn.ModuleList(_conv_bn(width, width, kernel_size=3) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Merges from the coarsest map to the finest."""
        merged: Tensor | None = None
        for level in reversed(range(len(maps))):
            lateral = self.laterals[level](maps[level])
            if merged is not None:
                lateral = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = F.relu(self.smooths[level](F.relu(lateral)))
        assert merged is not None
        return merged


def _conv_bn(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

"""Top-down neck (after feature pyramids, Lin et al., arXiv 1612.03144): without deformable convolutions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.convolution import make_conv_bn
from model.network.necks.neck import Neck


class TopDownNeck(Neck):
    """Merges the maps from the coarsest to the finest.

    The coarser maps, which carry the semantics, have twice the width of the finest: they have so few cells that it
    costs little.
    """

    accepts_odd_maps = True

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(channels, width)
        widths = [width] + [2 * width] * (len(channels) - 1)
        self.laterals = nn.ModuleList(make_conv_bn(c, w, kernel_size=1) for c, w in zip(channels, widths, strict=True))
        self.smooths = nn.ModuleList(
            make_conv_bn(w, finer, kernel_size=3) for w, finer in zip(widths, [width, *widths], strict=False)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels[i], H / strides[i], W / strides[i]), finest first → one (B, width, H/4, W/4)."""
        merged: Tensor | None = None
        for level in reversed(range(len(maps))):
            lateral = self.laterals[level](maps[level])
            if merged is not None:
                upsampled = F.interpolate(merged, scale_factor=2.0, mode="nearest")
                if level == len(maps) - 2:  # the coarsest map's size may have been rounded up
                    upsampled = upsampled[..., : lateral.shape[2], : lateral.shape[3]]
                lateral = lateral + upsampled
            merged = F.relu(self.smooths[level](F.relu(lateral)))
        assert merged is not None
        return merged

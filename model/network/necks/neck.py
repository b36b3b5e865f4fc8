"""The interface of necks."""

from collections.abc import Sequence

from torch import Tensor, nn


class Neck(nn.Module):
    """Merges a backbone's feature maps, usually at strides 4, 8, 16 and 32, into one at stride 4.

    Shapes: maps (B, channels[i], H / strides[i], W / strides[i]) → (B, width, H/4, W/4). If `accepts_odd_maps`, the
    coarsest map's height and width may be rounded up.
    """

    accepts_odd_maps = False

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels[i], H / strides[i], W / strides[i]), finest first → one (B, width, H/4, W/4)."""
        raise NotImplementedError

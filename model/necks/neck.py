"""What the networks ask of a neck."""

from collections.abc import Sequence

from torch import Tensor, nn


class Neck(nn.Module):
    """A backbone's maps, as a rule at strides 4, 8, 16 and 32, to one map at stride 4.

    Shapes: maps (B, channels[i], H / strides[i], W / strides[i]) → (B, width, H/4, W/4). One that `takes_odd` maps
    takes the coarsest one also where its height or width is rounded up.
    """

    takes_odd = False

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels[i], H / strides[i], W / strides[i]), finest first → one (B, width, H/4, W/4)."""
        raise NotImplementedError

"""No neck, for a backbone whose own maps are at stride 4."""

from collections.abc import Sequence

from torch import Tensor

from model.necks.neck import Neck


class NoNeck(Neck):
    """The backbone's last map as it is; the width is that map's."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(channels, channels[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels[i], H/4, W/4) → the last of them."""
        return maps[-1]

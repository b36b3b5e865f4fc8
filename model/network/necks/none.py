"""No neck, for a backbone whose maps are all at stride 4."""

from collections.abc import Sequence

from torch import Tensor

from model.network.necks.neck import Neck


class NoNeck(Neck):
    """Passes the backbone's last map through; `width` is that map's."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(channels, channels[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels[i], H/4, W/4) → the last of them."""
        return maps[-1]

